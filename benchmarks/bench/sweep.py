"""A grid of ways to compile and run one checkpoint, and which of them are worth taking.

Bundles differ by target, precision and block of the language model, precision of the other stages
and number of object queries; each is compiled once (stages that do not change come out of the
cache). Threads, picture size and number of classes are ways to run a bundle. The points of one
sweep are measured one after the other, so small differences between them mean little: compare two
of them with ``bench --vs``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from visionllm_edge.benchmarks.bench.measurement import Result, Workload
from visionllm_edge.benchmarks.bench.run import Accuracy, BenchOptions, Note
from visionllm_edge.benchmarks.bench.table_text import aligned
from visionllm_edge.runtime.errors import InputError, ParityError
from visionllm_edge.runtime.shapes_world import COLORS, SHAPES

__all__ = [
    "Grid",
    "Point",
    "Recipe",
    "Sweep",
    "front",
    "refusals",
    "run_sweep",
    "sweep_rows",
    "sweep_table",
]

_NAMES = (*SHAPES, *(f"{color} {shape}" for color in COLORS for shape in SHAPES))


@dataclass(frozen=True)
class Recipe:
    """How one bundle of a sweep is made.

    Attributes:
        llm: precision of the language model.
        block: weights that share a scale; 0 where there are no scales.
        vision: precision of the other stages as `compile --precision` takes it, with commas between
            several: `int8`, `vision_encoder=int8,det_backbone=int8`. None is the target's own.
        queries: that the object decoder follows; None is all that the checkpoint has.
        target: what runs the stages.
    """

    llm: str = "fp32"
    block: int = 0
    vision: str | None = None
    queries: int | None = None
    target: str = "cpu"


@dataclass(frozen=True)
class Grid:
    """What is tried; every combination.

    Attributes:
        precisions: of the language model.
        blocks: weights that share a scale; without effect on fp32.
        visions: precisions of the other stages, see `Recipe`.
        queries: that the object decoder follows; None is all that the checkpoint has.
        targets: what runs the stages: the cpu, or a target whose engines are built here.
        threads: of the backend; None leaves it to the backend.
        sizes: (height, width) of the pictures.
        class_counts: names asked for in detect and segment.
    """

    precisions: tuple[str, ...] = ("fp32", "int8", "int4")
    blocks: tuple[int, ...] = (32,)
    visions: tuple[str | None, ...] = (None,)
    queries: tuple[int | None, ...] = (None,)
    targets: tuple[str, ...] = ("cpu",)
    threads: tuple[int | None, ...] = (None,)
    sizes: tuple[tuple[int, int], ...] = ((128, 128),)
    class_counts: tuple[int, ...] = (3,)

    def recipes(self) -> list[Recipe]:
        """One per bundle; fp32 has no blocks."""
        every = itertools.product(
            self.targets, self.precisions, self.blocks, self.visions, self.queries
        )
        return list(
            dict.fromkeys(
                Recipe(llm, 0 if llm == "fp32" else block, vision, queries, target)
                for target, llm, block, vision, queries in every
            )
        )

    def label(
        self, recipe: Recipe, threads: int | None, size: tuple[int, int], classes: int
    ) -> str:
        """What distinguishes a point: only the fields that vary."""
        llm = f"LLM {recipe.llm}"
        if recipe.block and len(self.blocks) > 1:
            llm += f" b{recipe.block}"
        named = (
            (len(self.targets), recipe.target),
            (len(self.precisions) * len(self.blocks), llm),
            (len(self.visions), _vision_label(recipe.vision)),
            (len(self.queries), f"{recipe.queries or 'all'} queries"),
            (len(self.threads), f"{threads or 'default'} threads"),
            (len(self.sizes), f"{size[1]}x{size[0]}"),
            (len(self.class_counts), f"{classes} classes"),
        )
        return ", ".join(text for count, text in named if count > 1) or llm


def _vision_label(vision: str | None) -> str:
    """Stages of one precision together: ``vision_encoder, det_backbone int8``."""
    if vision is None or "=" not in vision:
        return f"vision {vision or 'default'}"
    stages: dict[str, list[str]] = {}
    for part in vision.split(","):
        stage, _, precision = part.rpartition("=")
        stages.setdefault(precision, []).append(stage or "others")
    return ", ".join(f"{' + '.join(names)} {precision}" for precision, names in stages.items())


@dataclass(frozen=True)
class Point:
    """One way, measured."""

    label: str
    result: Result

    def latency_ms(self, task: str) -> float:
        """Median of a task."""
        return next(one.stats.p50 for one in self.result.tasks if one.name == task)

    def metric_name(self, task: str) -> str | None:
        """What says how right a task is: its own first metric, or else that of the first task."""
        judged = self.result.accuracy
        owner = task if judged.get(task) else next((name for name in judged if judged[name]), None)
        return None if owner is None else f"{owner} {next(iter(judged[owner]))}"

    def accuracy(self, task: str) -> float | None:
        """The value of that metric; None where nothing was judged."""
        name = self.metric_name(task)
        if name is None:
            return None
        owner, _, metric = name.partition(" ")
        return self.result.accuracy[owner][metric]


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        points: that were measured.
        refused: label -> why the gate published no bundle.
    """

    points: tuple[Point, ...]
    refused: Mapping[str, str] = field(default_factory=dict)


def run_sweep(
    grid: Grid,
    compile_bundle: Callable[[Recipe], Path],
    workload: Workload,
    options: BenchOptions,
    *,
    measure: Callable[[Path, Workload, BenchOptions], Result],
    accuracy: Callable[[Path, int], Accuracy],
    note: Note = lambda text: None,
) -> Sweep:
    """Measure every combination; one that the parity gate refuses is left out and named.

    Args:
        grid: what is tried.
        compile_bundle: makes the bundle of a recipe.
        workload: what is asked, but for what the grid changes.
        options: how to measure.
        measure: measures one way to run a bundle, in a process of its own, so that the memory is
            not what earlier ways left behind.
        accuracy: judges a bundle; asked once per bundle.
        note: gets a line per step.

    Raises:
        InputError: more classes than there are names for.
        ParityError: the gate refuses every bundle.
        EdgeError: a bundle cannot be compiled, loaded or measured.
    """
    most = max(grid.class_counts)
    if most > len(_NAMES):
        raise InputError(
            f"bench sweep: expected at most {len(_NAMES)} classes, got {most}. Ask for fewer."
        )
    points: list[Point] = []
    refused: dict[str, ParityError] = {}
    ways = list(itertools.product(grid.threads, grid.sizes, grid.class_counts))
    for recipe in grid.recipes():
        name = grid.label(recipe, *ways[0])
        note(f"{name}: compile")
        try:
            bundle = compile_bundle(recipe)
        except ParityError as error:
            note(f"{name}: left out: {error}")
            refused[name] = error
            continue
        judged: Accuracy = {}
        if options.accuracy_pictures:
            note(f"{name}: how right the answers are")
            judged = accuracy(bundle, options.accuracy_pictures)
        for threads, size, classes in ways:
            label = grid.label(recipe, threads, size, classes)
            note(label)
            result = measure(
                bundle,
                replace(workload, image_px=size, classes=_NAMES[:classes]),
                replace(options, threads=threads, accuracy_pictures=0),
            )
            points.append(Point(label, replace(result, accuracy=judged)))
    if not points:
        raise next(iter(refused.values()))
    return Sweep(tuple(points), {name: str(error) for name, error in refused.items()})


def front(points: Sequence[Point], task: str) -> list[Point]:
    """Points that no other one beats in latency, accuracy and memory at once."""

    def worse(one: Point, other: Point) -> bool:
        pairs = [
            (one.latency_ms(task), other.latency_ms(task)),
            (one.result.peak_bytes, other.result.peak_bytes),
            (-(one.accuracy(task) or 0.0), -(other.accuracy(task) or 0.0)),
        ]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    return [one for one in points if not any(worse(one, other) for other in points)]


def sweep_rows(points: Sequence[Point]) -> list[list[str]]:
    """A table; the first row is its head. The last column names tasks that a way is worth for."""
    tasks = [task.name for task in points[0].result.tasks]
    best = {task: {id(point) for point in front(points, task)} for task in tasks}
    # Tasks may share a metric; by the name of it, one task.
    metrics = {
        name: task for task in reversed(tasks) if (name := points[0].metric_name(task)) is not None
    }
    judged = dict(reversed(metrics.items()))
    rows = [["", *(f"{task} ms" for task in tasks), *judged, "peak MB", "bundle MB", "front"]]
    for point in points:
        right = [point.accuracy(task) for task in judged.values()]
        rows.append(
            [
                point.label,
                *(f"{point.latency_ms(task):.2f}" for task in tasks),
                *("" if value is None else f"{value:.4f}" for value in right),
                f"{point.result.peak_bytes / 1e6:.0f}",
                f"{point.result.bundle.file_bytes / 1e6:.1f}",
                ", ".join(task for task in tasks if id(point) in best[task]),
            ]
        )
    return rows


def sweep_table(sweep: Sweep) -> str:
    """For the terminal."""
    return "\n".join([aligned(sweep_rows(sweep.points)), *refusals(sweep)])


def refusals(sweep: Sweep) -> list[str]:
    """A line for each way that was left out."""
    return [f"left out: {name}: {reason}" for name, reason in sweep.refused.items()]
