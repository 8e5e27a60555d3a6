"""Small pieces of SVG: text, lines, axes. Colours are CSS variables, so that a page can be dark."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["COLORS", "Axis", "color_of", "figure", "line", "path", "rect", "text", "ticks"]

COLORS = (
    "#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951",
    "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0",
)  # fmt: skip
"""Of stages, in the order in which they first appear."""


def color_of(name: str, names: Sequence[str]) -> str:
    """The colour of a name out of all names."""
    return COLORS[names.index(name) % len(COLORS)]


def figure(width: float, height: float, parts: Iterable[str], *, label: str) -> str:
    """A whole picture that shrinks with the page; the label is for readers who do not see it."""
    body = "".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{html.escape(label)}" font-family="system-ui,sans-serif" font-size="12">'
        f"<style>{_STYLE}</style>{body}</svg>"
    )


# Inside each picture, so that it looks the same alone; a page around it may set the variables.
_STYLE = (
    "text{fill:var(--ink,#1d2129)}.soft{fill:var(--soft,#5b6472)}"
    ".grid{stroke:var(--grid,#d9dde3);stroke-width:1}"
    ".axis{stroke:var(--soft,#5b6472);stroke-width:1;fill:none}"
)


def text(
    x: float, y: float, words: str, *, anchor: str = "start", soft: bool = False, size: int = 12
) -> str:
    """Words; `anchor` is start, middle or end."""
    kind = ' class="soft"' if soft else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{kind}>'
        f"{html.escape(words)}</text>"
    )


def rect(
    x: float, y: float, width: float, height: float, color: str, *, title: str = "", radius: int = 2
) -> str:
    """A bar, at least half a pixel wide so that nothing disappears."""
    hint = f"<title>{html.escape(title)}</title>" if title else ""
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0.5):.2f}" height="{height:.2f}" '
        f'rx="{radius}" fill="{color}">{hint}</rect>'
    )


def line(x0: float, y0: float, x1: float, y1: float, kind: str = "grid", dash: str = "") -> str:
    """A straight line of the class ``grid`` or ``axis``."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="{kind}"{dashed}/>'


def path(points: Sequence[tuple[float, float]], color: str, *, width: float = 1.8) -> str:
    """A line through points."""
    steps = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return f'<polyline points="{steps}" fill="none" stroke="{color}" stroke-width="{width}"/>'


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About so many round numbers between two."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / max(count, 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    out = []
    while (value := first * step) <= high + step * 1e-9:
        out.append(0.0 if abs(value) < step * 1e-9 else value)
        first += 1
    return out


@dataclass(frozen=True)
class Axis:
    """From numbers to places on the picture, linear or logarithmic."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where a number stands."""
        low, high, here = self.low, self.high, value
        if self.logarithmic:
            low, high, here = math.log(low), math.log(high), math.log(max(value, 1e-300))
        share = (here - low) / (high - low) if high > low else 0.0
        return self.start + share * (self.stop - self.start)

    def marks(self) -> list[float]:
        """Round numbers on the axis; powers of ten on a logarithmic one."""
        if not self.logarithmic:
            return ticks(self.low, self.high)
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        return [10.0**power for power in range(first, last + 1)]
