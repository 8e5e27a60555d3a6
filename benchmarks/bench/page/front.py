"""The picture of a sweep: latency against accuracy, memory as the size of the dot.

Dots carry numbers, and the list below says what they are: names of several options would cover each
other where ways differ by little.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from visionllm_edge.benchmarks.bench.page.svg import COLORS, Axis, figure, line, path, text
from visionllm_edge.benchmarks.bench.sweep import Point, front

__all__ = ["front_plot"]

_WIDTH, _BOTTOM = 760.0, 314.0
_LEFT, _RIGHT, _TOP = 70.0, 740.0, 26.0
_LARGEST_RADIUS = 13.0
_ROW_PX = 19.0
_FRONT_COLOR = "#9498a0"
# Where the columns of the list end.
_COLUMNS = (600.0, 690.0, 740.0)
_LETTERS = 78
_NUMBER_PX = 13.0


def front_plot(points: Sequence[Point], task: str) -> str:
    """Every point of a sweep for one task; filled dots are the ones worth taking."""
    best = {id(point) for point in front(points, task)}
    x = _around([point.latency_ms(task) for point in points], _LEFT, _RIGHT, least=0.02)
    y = _around([point.accuracy(task) or 0.0 for point in points], _BOTTOM, _TOP, least=0.005)
    parts = _axes(x, y, points[0], task)
    parts.append(_staircase([point for point in points if id(point) in best], task, x, y))
    largest = max(point.result.peak_bytes for point in points)
    taken: list[tuple[float, float]] = []
    for index, point in enumerate(points):
        color = COLORS[index % len(COLORS)]
        radius = _LARGEST_RADIUS * math.sqrt(point.result.peak_bytes / largest)
        here = x.at(point.latency_ms(task)), y.at(point.accuracy(task) or 0.0)
        fill = color if id(point) in best else "none"
        title = html.escape(
            f"{point.label}: {point.latency_ms(task):.2f} ms, "
            f"{point.result.peak_bytes / 1e6:.0f} MB"
        )
        parts.append(
            f'<circle cx="{here[0]:.1f}" cy="{here[1]:.1f}" r="{radius:.1f}" fill="{fill}" '
            f'fill-opacity="0.55" stroke="{color}" stroke-width="2"><title>{title}</title>'
            "</circle>"
        )
        place = _free(here, radius + 9, taken)
        taken.append(place)
        parts.append(text(place[0], place[1] + 4, str(index + 1), anchor="middle"))
    top = _BOTTOM + 58
    parts += _list(points, task, best, top)
    height = top + _ROW_PX * (len(points) + 1)
    return figure(_WIDTH, height, parts, label=f"Latency and accuracy of each way, {task}")


def _around(values: Sequence[float], start: float, stop: float, *, least: float) -> Axis:
    """An axis with some room beyond the values, and some between them if all are alike."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.15, least * max(abs(high), 1e-9))
    return Axis(low - room, high + room, start, stop)


def _axes(x: Axis, y: Axis, point: Point, task: str) -> list[str]:
    parts = []
    for mark in x.marks():
        parts += [
            line(x.at(mark), _TOP, x.at(mark), _BOTTOM),
            text(x.at(mark), _BOTTOM + 16, f"{mark:g}", anchor="middle", soft=True),
        ]
    for mark in y.marks():
        parts += [
            line(_LEFT, y.at(mark), _RIGHT, y.at(mark)),
            text(_LEFT - 6, y.at(mark) + 4, f"{mark:.4g}", anchor="end", soft=True),
        ]
    judged = point.metric_name(task) or "accuracy was not measured"
    said = f"{judged}; a dot's area is the memory; filled: no other way is better in everything"
    return [
        *parts,
        text(_LEFT, 14, said, soft=True),
        text(_RIGHT, _BOTTOM + 32, f"{task}, ms (median; the axis may not begin at 0)",
             anchor="end", soft=True),
    ]  # fmt: skip


def _staircase(best: Sequence[Point], task: str, x: Axis, y: Axis) -> str:
    """The best accuracy that each latency buys, memory left aside."""
    corners: list[tuple[float, float]] = []
    reached: float | None = None
    for point in sorted(best, key=lambda one: (one.latency_ms(task), -(one.accuracy(task) or 0))):
        accuracy = point.accuracy(task) or 0.0
        if reached is not None and accuracy <= reached:
            continue
        here = x.at(point.latency_ms(task))
        if reached is not None:
            corners.append((here, y.at(reached)))
        corners.append((here, y.at(accuracy)))
        reached = accuracy
    corners.append((x.stop, corners[-1][1]))
    return path(corners, _FRONT_COLOR, width=1.2)


def _free(
    here: tuple[float, float], reach: float, taken: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """The dot's centre for its number, or a place beside it where no other number stands."""
    ways = ((0, 0), (1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
    places = [(here[0] + dx * reach, here[1] + dy * reach) for dx, dy in ways]
    for place in places:
        if all(math.dist(place, other) > _NUMBER_PX for other in taken):
            return place
    return places[0]


def _list(points: Sequence[Point], task: str, best: set[int], top: float) -> list[str]:
    metric = (points[0].metric_name(task) or "").rpartition(" ")[2]
    parts = [
        text(at, top, words, anchor="end", soft=True)
        for at, words in zip(_COLUMNS, ("ms", metric, "MB"), strict=True)
    ]
    for index, point in enumerate(points):
        y, color = top + _ROW_PX * (index + 1), COLORS[index % len(COLORS)]
        fill = color if id(point) in best else "none"
        accuracy = point.accuracy(task)
        cells = (
            f"{point.latency_ms(task):.2f}",
            "" if accuracy is None else f"{accuracy:.4f}",
            f"{point.result.peak_bytes / 1e6:.0f}",
        )
        parts += [
            f'<circle cx="{_LEFT - 34:.1f}" cy="{y - 4:.1f}" r="5" fill="{fill}" '
            f'fill-opacity="0.55" stroke="{color}" stroke-width="2"/>',
            text(_LEFT - 8, y, str(index + 1), anchor="end"),
            text(_LEFT, y, _fitted(point.label)),
            *(text(at, y, cell, anchor="end") for at, cell in zip(_COLUMNS, cells, strict=True)),
        ]
    return parts


def _fitted(label: str) -> str:
    """As much of a label as stands beside the numbers; the dot's hint has all of it."""
    return label if len(label) <= _LETTERS else label[: _LETTERS - 1] + "\u2026"
