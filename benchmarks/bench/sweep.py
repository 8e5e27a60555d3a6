"""A grid of ways to compile and run one checkpoint, and which of them are worth taking.

Bundles differ by precision and block of the language model; each is compiled once (stages that do
not change come out of the cache). Threads, picture size and number of classes are ways to run a
bundle. The points of one sweep are measured one after the other, so small differences between them
mean little: compare two of them with ``bench --vs``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from visionllm_edge.benchmarks.bench.measurement import Result, Workload
from visionllm_edge.benchmarks.bench.run import Accuracy, BenchOptions, Note, bench_bundle
from visionllm_edge.benchmarks.bench.table_text import aligned
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.shapes_world import COLORS, SHAPES

__all__ = ["Grid", "Point", "front", "run_sweep", "sweep_rows", "sweep_table"]

_NAMES = (*SHAPES, *(f"{color} {shape}" for color in COLORS for shape in SHAPES))


@dataclass(frozen=True)
class Grid:
    """What is tried; every combination.

    Attributes:
        precisions: of the language model.
        blocks: weights that share a scale; without effect on fp32.
        threads: of the backend; None leaves it to the backend.
        sizes: (height, width) of the pictures.
        class_counts: names asked for in detect and segment.
    """

    precisions: tuple[str, ...] = ("fp32", "int8", "int4")
    blocks: tuple[int, ...] = (32,)
    threads: tuple[int | None, ...] = (None,)
    sizes: tuple[tuple[int, int], ...] = ((128, 128),)
    class_counts: tuple[int, ...] = (3,)

    def bundles(self) -> list[tuple[str, int]]:
        """Precision and block of every bundle; fp32 has no blocks."""
        pairs = itertools.product(self.precisions, self.blocks)
        return list(dict.fromkeys((p, 0 if p == "fp32" else b) for p, b in pairs))


@dataclass(frozen=True)
class Point:
    """One way, measured."""

    label: str
    result: Result

    def latency_ms(self, task: str) -> float:
        """Median of a task."""
        return next(one.stats.p50 for one in self.result.tasks if one.name == task)

    def accuracy(self) -> float | None:
        """Box AP, or whatever metric comes first."""
        for metrics in self.result.accuracy.values():
            for value in metrics.values():
                return value
        return None


def run_sweep(
    grid: Grid,
    compile_bundle: Callable[[str, int], Path],
    workload: Workload,
    options: BenchOptions,
    *,
    accuracy: Callable[[Path, int], Accuracy],
    note: Note = lambda text: None,
) -> list[Point]:
    """Measure every combination.

    Args:
        grid: what is tried.
        compile_bundle: precision and block (0 for none) to a bundle.
        workload: what is asked, but for what the grid changes.
        options: how to measure.
        accuracy: judges a bundle; asked once per bundle.
        note: gets a line per step.

    Raises:
        InputError: more classes than there are names for.
        EdgeError: a bundle cannot be compiled, loaded or measured.
    """
    most = max(grid.class_counts)
    if most > len(_NAMES):
        raise InputError(
            f"bench sweep: expected at most {len(_NAMES)} classes, got {most}. Ask for fewer."
        )
    points = []
    for precision, block in grid.bundles():
        name = precision if not block else f"{precision} b{block}"
        note(f"{name}: compile")
        bundle = compile_bundle(precision, block)
        judged: Accuracy = {}
        if options.accuracy_pictures:
            note(f"{name}: how right the answers are")
            judged = accuracy(bundle, options.accuracy_pictures)
        for threads, size, classes in itertools.product(
            grid.threads, grid.sizes, grid.class_counts
        ):
            label = name
            label += f", {threads} threads" if len(grid.threads) > 1 else ""
            label += f", {size[1]}x{size[0]}" if len(grid.sizes) > 1 else ""
            label += f", {classes} classes" if len(grid.class_counts) > 1 else ""
            note(label)
            result = bench_bundle(
                bundle,
                replace(workload, image_px=size, classes=_NAMES[:classes]),
                replace(options, threads=threads, accuracy_pictures=0),
                note=note,
            )
            points.append(Point(label, replace(result, accuracy=judged)))
    return points


def front(points: Sequence[Point], task: str) -> list[Point]:
    """Points that no other one beats in latency, accuracy and memory at once."""

    def worse(one: Point, other: Point) -> bool:
        pairs = [
            (one.latency_ms(task), other.latency_ms(task)),
            (one.result.peak_bytes, other.result.peak_bytes),
            (-(one.accuracy() or 0.0), -(other.accuracy() or 0.0)),
        ]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    return [one for one in points if not any(worse(one, other) for other in points)]


def sweep_rows(points: Sequence[Point]) -> list[list[str]]:
    """A table; the first row is its head."""
    tasks = [task.name for task in points[0].result.tasks]
    best = {id(point) for task in tasks for point in front(points, task)}
    head = ["", *(f"{task} ms" for task in tasks), "accuracy", "peak MB", "bundle MB", "front"]
    rows = [head]
    for point in points:
        accuracy = point.accuracy()
        rows.append(
            [
                point.label,
                *(f"{point.latency_ms(task):.2f}" for task in tasks),
                "" if accuracy is None else f"{accuracy:.4f}",
                f"{point.result.peak_bytes / 1e6:.0f}",
                f"{point.result.bundle.file_bytes / 1e6:.1f}",
                "yes" if id(point) in best else "",
            ]
        )
    return rows


def sweep_table(points: Sequence[Point]) -> str:
    """For the terminal."""
    return aligned(sweep_rows(points))
