"""Pictures to be drawn from a caption, and changes to be made to a picture.

A :class:`Sketch` says what a picture shows before it is drawn: few, large figures that do not touch
each other, each with a random seed of its own. Drawing it twice gives the same picture, and with
one figure changed the same picture but for that figure. So an edit's exact result is known: the
background, the light and every other figure stay as they were.

Sentences begin with a small letter and end without a full stop; the prompt's wording adds those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.shapes_world.background import make_background
from visionllm_edge.runtime.shapes_world.language import indefinite
from visionllm_edge.runtime.shapes_world.names import COLORS, SHAPES
from visionllm_edge.runtime.shapes_world.outline import draw_outline
from visionllm_edge.runtime.shapes_world.scene import (
    Placed,
    Scene,
    finished_item,
    paint,
    tight_box,
)

__all__ = [
    "EDIT_KINDS",
    "Edit",
    "EditKind",
    "Figure",
    "Sketch",
    "draw_sketch",
    "held_out",
    "make_edit",
    "make_sketch",
    "sketch_of",
]

EditKind = Literal["recolor", "replace", "remove"]
EDIT_KINDS: tuple[EditKind, ...] = ("recolor", "replace", "remove")

_SIZES = (0.32, 0.44)
_COMPOSED_SIZES = (0.38, 0.44)
_MIDDLES = ((0.5,), (0.26, 0.74))
# Between the squares that hold two figures, as a part of the shorter side.
_GAP = 0.02
_TRIES = 2000
_GRAIN = (1.0, 7.0)
_SEEDS = 2**31
# One two-figure caption in so many is never trained on.
_HELD_OUT_SHARE = 10


@dataclass(frozen=True)
class Figure:
    """One figure of a sketch.

    Attributes:
        shape: One of ``SHAPES``.
        color: One of ``COLORS``.
        size: Longer side, as a part of the picture's shorter side.
        left: Where the square of that size that holds it begins, in the same unit.
        top: The same, downwards.
        seed: Decides rotation, proportions, pose and light.
    """

    shape: str
    color: str
    size: float
    left: float
    top: float
    seed: int

    @property
    def name(self) -> str:
        """Colour and shape: ``red circle``."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Sketch:
    """What a picture shows.

    Attributes:
        figures: From left to right.
        backdrop: Seed of the background and the grain.
    """

    figures: tuple[Figure, ...]
    backdrop: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the figures, from left to right."""
        return tuple(figure.name for figure in self.figures)

    @property
    def caption(self) -> str:
        """Name every figure from left to right: ``a red circle and a blue star``."""
        return " and ".join(indefinite(name) for name in self.names)


@dataclass(frozen=True)
class Edit:
    """A change to a picture.

    Attributes:
        kind: ``recolor``, ``replace`` (another shape, same colour) or ``remove``.
        instruction: ``make the red circle blue``, ``replace the red circle with a star``,
            ``remove the blue star``.
        before: The picture to be changed.
        after: What it is to become.
        index: The figure of ``before`` that changes.
    """

    kind: EditKind
    instruction: str
    before: Sketch
    after: Sketch
    index: int


def held_out(names: Sequence[str]) -> bool:
    """Whether a caption with these names, from left to right, is kept for evaluation.

    A tenth of the pairs is; every name alone is trained on.
    """
    if len(names) < 2:
        return False
    numbers = [SHAPES.index(n.split()[1]) + 6 * COLORS.index(n.split()[0]) for n in names]
    return (numbers[0] + 3 * numbers[1]) % _HELD_OUT_SHARE == 7


def make_sketch(
    rng: np.random.Generator,
    *,
    min_figures: int = 1,
    max_figures: int = 2,
    kept: bool | None = False,
) -> Sketch:
    """Make up a picture.

    Args:
        rng: Source of everything random.
        min_figures: Fewest figures, 1 or 2.
        max_figures: Most figures, 1 or 2.
        kept: False for captions to train on, True for those of :func:`held_out`, None for both.

    Raises:
        InputError: numbers of figures for which there is no room, or no caption.
    """
    if not 1 <= min_figures <= max_figures <= 2 or (kept and min_figures < 2):
        raise InputError(
            "sketch: expected 1 or 2 figures (2 for the captions kept for evaluation), got "
            f"{min_figures} to {max_figures}."
        )
    while True:
        count = int(rng.integers(min_figures, max_figures + 1))
        names = [(_some(rng, COLORS), _some(rng, SHAPES)) for _ in range(count)]
        same_color = count == 2 and names[0] == names[1]
        if same_color or (kept is not None and held_out([" ".join(n) for n in names]) != kept):
            continue
        return sketch_of([" ".join(name) for name in names], rng)


def sketch_of(names: Sequence[str], rng: np.random.Generator, *, composed: bool = False) -> Sketch:
    """A picture of the named figures, from left to right; the rest is made up.

    Args:
        names: one or two, colour and shape each.
        rng: Source of everything random.
        composed: whether one figure stands about in the middle, and two side by side, all large;
            otherwise places and sizes are anything that fits.
    """
    figures = []
    places = _composed_places(rng, len(names)) if composed else _places(rng, len(names))
    for name, (size, left, top) in zip(names, places, strict=True):
        color, shape = name.split()
        figures.append(Figure(shape, color, size, left, top, seed=_seed(rng)))
    return Sketch(tuple(figures), _seed(rng))


def make_edit(
    rng: np.random.Generator, *, kind: EditKind | None = None, kept: bool | None = False
) -> Edit:
    """Make up a change to a picture; nothing is removed from a picture of one figure.

    Args:
        rng: Source of everything random.
        kind: what changes; None for any of the three, equally likely.
        kept: see :func:`make_sketch`; it is about the picture before the change.
    """
    chosen = kind or EDIT_KINDS[int(rng.integers(len(EDIT_KINDS)))]
    pair = kept or chosen == "remove"
    before = make_sketch(rng, min_figures=2 if pair else 1, kept=kept)
    index = int(rng.integers(len(before.figures)))
    figure = before.figures[index]
    others = before.figures[:index] + before.figures[index + 1 :]
    if chosen == "remove":
        return Edit(chosen, f"remove the {figure.name}", before, _with(before, others), index)
    taken = {figure.name, *(other.name for other in others)}
    if chosen == "recolor":
        options = [replace(figure, color=c) for c in COLORS if f"{c} {figure.shape}" not in taken]
        new = options[int(rng.integers(len(options)))]
        instruction = f"make the {figure.name} {new.color}"
    else:
        options = [replace(figure, shape=s) for s in SHAPES if f"{figure.color} {s}" not in taken]
        new = options[int(rng.integers(len(options)))]
        instruction = f"replace the {figure.name} with {indefinite(new.shape)}"
    figures = (*before.figures[:index], new, *before.figures[index + 1 :])
    return Edit(chosen, instruction, before, _with(before, figures), index)


def draw_sketch(sketch: Sketch, *, width: int = 64, height: int = 64) -> Scene:
    """Draw it; the same sketch always gives the same picture.

    Args:
        sketch: What to draw.
        width: Width in pixels, at least the height.
        height: Height in pixels; figures are measured by it.

    Raises:
        InputError: a picture that is too small, or higher than wide.
    """
    if not 32 <= height <= width:
        raise InputError(
            "sketch: expected a picture of at least 32 px each way that is not higher than wide, "
            f"got {width}x{height}."
        )
    rng = np.random.default_rng(sketch.backdrop)
    canvas = make_background(rng, width, height)
    placed = [_place(figure, height) for figure in sketch.figures]
    for one, figure in zip(placed, sketch.figures, strict=True):
        # Not the outline's generator: another shape is to be lit in the same way.
        paint(np.random.default_rng([figure.seed, 1]), canvas, one)
    grain = rng.standard_normal((height, width), dtype=np.float32)
    canvas += (grain * np.float32(rng.uniform(*_GRAIN)))[:, :, None]
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Scene(image, tuple(finished_item(one, width, height) for one in placed))


def _with(sketch: Sketch, figures: tuple[Figure, ...]) -> Sketch:
    return replace(sketch, figures=figures)


def _some(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(_SEEDS))


def _places(rng: np.random.Generator, count: int) -> list[tuple[float, float, float]]:
    """Size, left and top of each figure, from left to right."""
    for _ in range(_TRIES):
        sizes = rng.uniform(*_SIZES, size=count)
        corners = rng.uniform(0.0, 1.0, size=(count, 2)) * (1.0 - sizes)[:, None]
        if count == 2 and corners[0, 0] + sizes[0] + _GAP > corners[1, 0]:
            continue
        return [
            (float(size), float(left), float(top))
            for size, (left, top) in zip(sizes, corners, strict=True)
        ]
    raise AssertionError("two figures always find room within that many tries")


def _composed_places(rng: np.random.Generator, count: int) -> list[tuple[float, float, float]]:
    """The same, of pictures that are composed as a person would."""
    places = []
    for middle in _MIDDLES[count - 1]:
        size = rng.uniform(*_COMPOSED_SIZES)
        x = middle + rng.uniform(-0.02, 0.02)
        y = 0.5 + rng.uniform(-0.05, 0.05)
        places.append((float(size), float(x - size / 2), float(y - size / 2)))
    return places


def _place(figure: Figure, side_px: int) -> Placed:
    """The figure at this size of the picture, in the middle of its square."""
    rng = np.random.default_rng([figure.seed, 0])
    outline = draw_outline(figure.shape, figure.size * side_px, rng)
    rows, columns = outline.alpha.shape
    square = figure.size * side_px
    left = round(min(max(0.0, figure.left * side_px + (square - columns) / 2), side_px - columns))
    top = round(min(max(0.0, figure.top * side_px + (square - rows) / 2), side_px - rows))
    solid = outline.alpha >= 0.5
    x0, y0, x1, y1 = tight_box(solid)
    box = (x0 + left, y0 + top, x1 + left, y1 + top)
    return Placed(
        figure.shape, figure.color, outline, left, top, solid=solid, visible=solid, box=box
    )
