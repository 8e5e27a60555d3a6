"""The pictures of a result: when each stage ran, where the time goes, how it spreads, limits."""

from __future__ import annotations

from collections.abc import Sequence

from visionllm_edge.benchmarks.bench.measurement import Result, Sample, Span, StageTimes, TaskTimes
from visionllm_edge.benchmarks.bench.overlap import beside_ms
from visionllm_edge.benchmarks.bench.page.svg import (
    Axis,
    color_of,
    figure,
    line,
    path,
    rect,
    text,
)

__all__ = ["distribution", "gantt", "median_sample", "roofline_plot", "stage_names", "stage_split"]

_WIDTH = 760.0
_LEFT = 118.0
_RIGHT = 16.0
_HOST = "host only"
_HOST_COLOR = "var(--host,#c3c8d0)"
# Words inside a bar need this much room per letter.
_LETTER_PX = 6.6
_BINS = 40


def stage_names(result: Result) -> list[str]:
    """Every stage in the order of its first run; colours follow it."""
    names = dict.fromkeys(
        span.stage for task in result.tasks for sample in task.samples for span in sample.spans
    )
    return list(names)


def median_sample(task: TaskTimes) -> Sample:
    """The request whose time is nearest to the median."""
    return min(task.samples, key=lambda sample: abs(sample.total_ms - task.stats.p50))


def gantt(task: TaskTimes, names: Sequence[str]) -> str:
    """When each stage ran, in the request nearest to the median.

    What another thread ran has a dark edge; time in which two stages ran is said once above.
    """
    sample = median_sample(task)
    beside = beside_ms(sample.spans)
    rows = [name for name in names if any(span.stage == name for span in sample.spans)]
    height = 30 + 24 * len(rows) + 26
    axis = Axis(0.0, sample.total_ms, _LEFT, _WIDTH - _RIGHT)
    bottom = 30 + 24 * len(rows)
    head = f"{task.name}: one request of {sample.total_ms:.2f} ms"
    if sum(beside) > 0:
        head += f", {sum(beside):.2f} ms of it with two stages at once"
    parts = [text(_LEFT, 16, head, size=13)]
    for mark in axis.marks():
        parts += [
            line(axis.at(mark), 24, axis.at(mark), bottom),
            text(axis.at(mark), bottom + 16, f"{mark:g}", anchor="middle", soft=True),
        ]
    parts.append(text(_WIDTH - _RIGHT, bottom + 16, "ms", anchor="end", soft=True))
    for row, name in enumerate(rows):
        y = 28 + 24 * row
        parts.append(text(_LEFT - 8, y + 13, name, anchor="end"))
        for span, shared in zip(sample.spans, beside, strict=True):
            if span.stage == name:
                x = axis.at(span.start_ms)
                wide = axis.at(span.start_ms + span.host_ms) - x
                if span.thread:
                    parts.append(rect(x - 1, y - 1, wide + 2, 20, "var(--ink,#1d2129)"))
                color = color_of(name, names)
                parts.append(rect(x, y, wide, 18, color, title=_hint(span, shared)))
    return figure(_WIDTH, height, parts, label=f"When each stage of {task.name} ran")


def _hint(span: Span, beside: float) -> str:
    """What is known of a bar: on the host, on the device, and at the same time as others."""
    said = [f"{span.stage}: {span.host_ms:.3f} ms from {span.start_ms:.3f} ms"]
    if span.rows > 1:
        said.append(f"{span.rows} rows")
    if span.device_ms is not None:
        said.append(f"device {span.device_ms:.3f} ms")
    if span.copy_ms is not None:
        said.append(f"copies {span.copy_ms:.3f} ms")
    if span.thread:
        said.append(f"on a thread of its own, {beside:.3f} ms beside other stages")
    return ", ".join(said)


def stage_split(result: Result, names: Sequence[str]) -> str:
    """Where each task's time goes: its stages, and the host's own work. Nothing counts twice."""
    axis = Axis(0.0, max(task.stats.p50 for task in result.tasks), _LEFT, _WIDTH - 80)
    parts = []
    for row, task in enumerate(result.tasks):
        y = 8 + 34 * row
        parts.append(text(_LEFT - 8, y + 17, task.name, anchor="end"))
        entries = [entry for entry in result.stages if entry.task == task.name]
        shares = [(entry.stage, entry.share, color_of(entry.stage, names)) for entry in entries]
        shares.append((_HOST, max(0.0, 1 - sum(s for _, s, _ in shares)), _HOST_COLOR))
        hidden = {entry.stage: entry.beside for entry in entries if entry.beside is not None}
        x = _LEFT
        for name, share, color in shares:
            wide = (axis.at(task.stats.p50) - _LEFT) * share
            title = f"{name}: {share:.1%}, {share * task.stats.p50:.2f} ms"
            if name in hidden:
                title += f", and {hidden[name] * task.stats.p50:.2f} ms beside other stages"
            parts.append(rect(x, y, wide, 26, color, title=title, radius=0))
            x += wide
        parts.append(text(x + 6, y + 17, f"{task.stats.p50:.2f} ms"))
    y = 8 + 34 * len(result.tasks) + 12
    x = _LEFT
    for name, color in [*((n, color_of(n, names)) for n in names), (_HOST, _HOST_COLOR)]:
        if x + 24 + _LETTER_PX * len(name) > _WIDTH - _RIGHT:
            x, y = _LEFT, y + 20
        parts += [rect(x, y - 10, 12, 12, color), text(x + 17, y, name, soft=True)]
        x += 34 + _LETTER_PX * len(name)
    return figure(_WIDTH, y + 12, parts, label="Where the time of each task goes")


def distribution(task: TaskTimes) -> str:
    """How the times of a task spread: a histogram, and the share of requests up to each time."""
    times = sorted(sample.total_ms for sample in task.samples)
    stats = task.stats
    # A single slow request must not press all the others into one bar.
    high = min(times[-1], stats.p50 + 8 * (times[int(len(times) * 0.75)] - times[0]) + 1e-9)
    high = max(high, times[0] * 1.02)
    x = Axis(times[0], high, _LEFT, _WIDTH - 50)
    step = (high - times[0]) / _BINS
    counts = [0] * _BINS
    for value in times:
        if value <= high:
            counts[min(int((value - times[0]) / step), _BINS - 1)] += 1
    y = Axis(0, max(counts), 150, 30)
    beyond = sum(value > high for value in times)
    note = f", {beyond} beyond the picture" if beyond else ""
    parts = [text(_LEFT, 16, f"{task.name}: {stats.count} requests{note}", size=13)]
    for mark in x.marks():
        parts += [
            line(x.at(mark), 30, x.at(mark), 150),
            text(x.at(mark), 166, f"{mark:g}", anchor="middle", soft=True),
        ]
    for index, count in enumerate(counts):
        if count:
            left = x.at(times[0] + index * step)
            wide = x.at(times[0] + (index + 1) * step) - left - 1
            title = f"{count} requests from {times[0] + index * step:.2f} ms"
            top = y.at(count)
            parts.append(rect(left, top, wide, 150 - top, "#97bbf5", title=title, radius=0))
    share = Axis(0, 1, 150, 30)
    points = [(x.at(v), share.at((i + 1) / len(times))) for i, v in enumerate(times) if v <= high]
    parts.append(path(points, "#4269d0"))
    for value in (0.0, 0.5, 0.9, 1.0):
        parts.append(text(_WIDTH - 44, share.at(value) + 4, f"{value:.0%}", soft=True, size=11))
    for name, mark_at in (("p50", stats.p50), ("p90", stats.p90), ("p99", stats.p99)):
        if mark_at is not None and mark_at <= high:
            parts += [
                line(x.at(mark_at), 26, x.at(mark_at), 150, "axis", dash="3 3"),
                text(x.at(mark_at) + 3, 38, name, soft=True, size=11),
            ]
    parts.append(text(_LEFT - 8, 95, "requests", anchor="end", soft=True))
    parts.append(text(_WIDTH - 50, 182, "ms", anchor="end", soft=True))
    return figure(_WIDTH, 190, parts, label=f"How the times of {task.name} spread")


def roofline_plot(stages: Sequence[StageTimes], names: Sequence[str]) -> str | None:
    """Rate of every stage against operations per byte; None where nothing was counted."""
    points = []
    roofs: list[tuple[float, float]] = []
    for entry in stages:
        roof = entry.roofline
        if roof is None or roof.counted_bytes == 0 or roof.counted_operations == 0:
            continue
        intensity = roof.counted_operations / roof.counted_bytes
        # Operations are those of a whole request, which may run a stage many times.
        best = roof.counted_operations / roof.limit_ms / 1e6
        points.append((entry, intensity, best * roof.share))
        roofs.append((intensity, best))
    if not points:
        return None
    x = Axis(
        min(i for _, i, _ in points) / 3, max(i for _, i, _ in points) * 3, 70, _WIDTH - 20, True
    )
    rates = [r for _, _, r in points] + [r for _, r in roofs]
    y = Axis(min(rates) / 3, max(rates) * 3, 300, 20, True)
    parts = []
    for mark in x.marks():
        parts += [
            line(x.at(mark), 20, x.at(mark), 300),
            text(x.at(mark), 316, f"{mark:g}", anchor="middle", soft=True),
        ]
    for mark in y.marks():
        parts += [
            line(70, y.at(mark), _WIDTH - 20, y.at(mark)),
            text(64, y.at(mark) + 4, f"{mark:g}", anchor="end", soft=True),
        ]
    for (entry, intensity, rate), (_, roof_rate) in zip(points, roofs, strict=True):
        here, top, bottom = x.at(intensity), y.at(roof_rate), y.at(rate)
        assert entry.roofline is not None
        title = f"{entry.task}, {entry.stage}: {entry.roofline.share:.0%} of its limit"
        parts += [
            line(here, top, here, bottom, "axis", dash="2 3"),
            line(here - 7, top, here + 7, top, "axis"),
            f'<circle cx="{here:.1f}" cy="{bottom:.1f}" r="5" '
            f'fill="{color_of(entry.stage, names)}"><title>{title}</title></circle>',
        ]
    parts += [
        text(_WIDTH - 20, 334, "operations per byte (counted)", anchor="end", soft=True),
        text(70, 14, "GFLOP/s: dot measured, bar the stage's limit (estimated)", soft=True),
    ]
    return figure(_WIDTH, 342, parts, label="Every stage against its own limit")
