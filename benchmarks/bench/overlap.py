"""Stages that ran at the same time: what of each counts, so that a request's parts add up.

Time in which two stages ran counts once, for the one whose thread asked first: a stage that ran
beside another one for all of its time took none of the request's.
"""

from __future__ import annotations

from collections.abc import Sequence

from visionllm_edge.benchmarks.bench.measurement import Span

__all__ = ["beside_ms"]


def beside_ms(spans: Sequence[Span]) -> list[float]:
    """For each span the time in which a stage of an earlier thread ran, too."""
    out = [0.0] * len(spans)
    taken: list[tuple[float, float]] = []
    for thread in sorted({span.thread for span in spans}):
        mine = [
            (index, span.start_ms, span.start_ms + span.host_ms)
            for index, span in enumerate(spans)
            if span.thread == thread
        ]
        for index, start, stop in mine:
            out[index] = sum(max(0.0, min(stop, b) - max(start, a)) for a, b in taken)
        taken = _union([*taken, *((start, stop) for _, start, stop in mine)])
    return out


def _union(parts: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same times without overlaps, in order."""
    joined: list[tuple[float, float]] = []
    for start, stop in sorted(parts):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined
