"""The picture of a sweep: latency against accuracy, memory as the size of the dot."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from visionllm_edge.benchmarks.bench.page.svg import COLORS, Axis, figure, line, text
from visionllm_edge.benchmarks.bench.sweep import Point, front

__all__ = ["front_plot"]

_WIDTH, _HEIGHT = 760.0, 360.0
_LARGEST_RADIUS = 16.0


def front_plot(points: Sequence[Point], task: str) -> str:
    """Every point of a sweep for one task; filled dots are the ones worth taking."""
    latencies = [point.latency_ms(task) for point in points]
    accuracies = [point.accuracy() or 0.0 for point in points]
    margin = (max(accuracies) - min(accuracies)) * 0.15 or 0.01
    x = Axis(0.0, max(latencies) * 1.1, 70, _WIDTH - 20)
    y = Axis(min(accuracies) - margin, max(accuracies) + margin, _HEIGHT - 46, 20)
    parts = []
    for mark in x.marks():
        parts += [
            line(x.at(mark), 20, x.at(mark), _HEIGHT - 46),
            text(x.at(mark), _HEIGHT - 30, f"{mark:g}", anchor="middle", soft=True),
        ]
    for mark in y.marks():
        parts += [
            line(70, y.at(mark), _WIDTH - 20, y.at(mark)),
            text(64, y.at(mark) + 4, f"{mark:.4g}", anchor="end", soft=True),
        ]
    best = {id(point) for point in front(points, task)}
    largest = max(point.result.peak_bytes for point in points)
    for index, point in enumerate(points):
        color = COLORS[index % len(COLORS)]
        radius = _LARGEST_RADIUS * math.sqrt(point.result.peak_bytes / largest)
        here = x.at(point.latency_ms(task)), y.at(point.accuracy() or 0.0)
        fill = color if id(point) in best else "none"
        title = html.escape(
            f"{point.label}: {point.latency_ms(task):.2f} ms, "
            f"{point.result.peak_bytes / 1e6:.0f} MB"
        )
        parts += [
            f'<circle cx="{here[0]:.1f}" cy="{here[1]:.1f}" r="{radius:.1f}" fill="{fill}" '
            f'fill-opacity="0.75" stroke="{color}" stroke-width="2"><title>{title}</title>'
            "</circle>",
            text(here[0], here[1] - radius - 4, point.label, anchor="middle", size=11),
        ]
    parts += [
        text(_WIDTH - 20, _HEIGHT - 8, f"{task}, ms (median)", anchor="end", soft=True),
        text(70, 14, "accuracy; the dot's area is the process's memory", soft=True),
    ]
    return figure(_WIDTH, _HEIGHT, parts, label=f"Latency and accuracy of each way, {task}")
