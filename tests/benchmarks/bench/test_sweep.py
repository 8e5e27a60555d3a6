"""Every combination once, every bundle once, and the ways that are worth taking."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.bench.made_up import made_up_result
from visionllm_edge.benchmarks.bench import sweep
from visionllm_edge.benchmarks.bench.measurement import Result, Workload
from visionllm_edge.benchmarks.bench.run import BenchOptions
from visionllm_edge.benchmarks.bench.sweep import Grid, Point, front, run_sweep, sweep_table
from visionllm_edge.benchmarks.bench.sweep_files import write_sweep
from visionllm_edge.runtime.errors import InputError

WORKLOAD = Workload((128, 128), ("circle",), 8, 0, 0.02, 1.0)


def point(label: str, ms: float, ap: float, peak: int) -> Point:
    result = made_up_result()
    task = result.tasks[0]
    task = dataclasses.replace(task, stats=dataclasses.replace(task.stats, p50=ms))
    return Point(
        label,
        dataclasses.replace(
            result, tasks=(task,), accuracy={"detect": {"box_ap": ap}}, peak_bytes=peak
        ),
    )


POINTS = [
    point("fp32", 30.0, 0.860, 200),
    point("int8", 20.0, 0.859, 150),
    point("int4", 15.0, 0.840, 120),
    point("slow int4", 25.0, 0.840, 160),
]


def test_the_front_leaves_out_what_another_beats_in_everything() -> None:
    assert [one.label for one in front(POINTS, "detect")] == ["fp32", "int8", "int4"]
    table = sweep_table(POINTS).splitlines()
    assert table[1].endswith("yes") and not table[4].endswith("yes")


def test_files_of_a_sweep(tmp_path: Path) -> None:
    names = {path.name for path in write_sweep(POINTS, tmp_path)}
    assert {"000.json", "003.json", "sweep.md", "detect.svg"} <= names
    picture = ElementTree.fromstring((tmp_path / "detect.svg").read_text())
    assert len([one for one in picture.iter() if one.tag.endswith("circle")]) == len(POINTS)


def test_every_combination(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def bench(path: Path, workload: Workload, options: BenchOptions, **_: Any) -> Result:
        asked.append((path.name, workload.image_px, len(workload.classes), options.threads))
        return made_up_result()

    monkeypatch.setattr(sweep, "bench_bundle", bench)
    compiled: list[tuple[str, int]] = []

    def compile_bundle(precision: str, block: int) -> Path:
        compiled.append((precision, block))
        return tmp_path / f"{precision}-{block}"

    judged: list[str] = []

    def accuracy(path: Path, images: int) -> dict[str, dict[str, float]]:
        judged.append(path.name)
        return {"detect": {"box_ap": 0.5}}

    grid = Grid(("fp32", "int4"), (32, 128), (1, 2), ((64, 64),), (1, 2))
    options = BenchOptions(accuracy_pictures=4)
    points = run_sweep(grid, compile_bundle, WORKLOAD, options, accuracy=accuracy)
    assert compiled == [("fp32", 0), ("int4", 32), ("int4", 128)]  # fp32 has no blocks
    assert judged == ["fp32-0", "int4-32", "int4-128"]
    assert len(points) == len(set(asked)) == 3 * 2 * 2
    assert points[0].label == "fp32, 1 threads, 1 classes" and points[0].accuracy() == 0.5


def test_more_classes_than_names() -> None:
    with pytest.raises(InputError, match="at most 42 classes, got 99"):
        run_sweep(
            Grid(class_counts=(99,)),
            lambda precision, block: Path(),
            WORKLOAD,
            BenchOptions(),
            accuracy=lambda path, images: {},
        )
