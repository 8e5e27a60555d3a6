"""Every combination once, every bundle once, and the ways that are worth taking."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.benchmarks.bench.made_up import made_up_result
from tests.export.official_keys import RELEASED
from tests.export.synthetic import config_for
from visionllm_edge.benchmarks.bench.measurement import Result, Workload
from visionllm_edge.benchmarks.bench.page.front import front_plot
from visionllm_edge.benchmarks.bench.run import BenchOptions
from visionllm_edge.benchmarks.bench.sweep import (
    Grid,
    Point,
    Recipe,
    Sweep,
    front,
    run_sweep,
    sweep_rows,
    sweep_table,
)
from visionllm_edge.benchmarks.bench.sweep_files import check_recipes, compiler, write_sweep
from visionllm_edge.export.kit import KitOptions
from visionllm_edge.runtime.engines.gpu import Gpu, NoGpu
from visionllm_edge.runtime.errors import BackendError, EdgeError, InputError, ParityError

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
    table = sweep_table(Sweep(tuple(POINTS))).splitlines()
    assert table[1].endswith(" detect") and not table[4].endswith("detect")


def test_every_task_is_judged_by_its_own_metric() -> None:
    def two(label: str, ms: float, ap: float, match: float) -> Point:
        one = point(label, ms, ap, 100)
        (task,) = one.result.tasks
        tasks = tuple(dataclasses.replace(task, name=n) for n in ("detect", "segment", "caption"))
        judged = {"detect": {"box_ap": ap, "box_ap50": 1.0}, "caption": {"exact_match": match}}
        return Point(label, dataclasses.replace(one.result, tasks=tasks, accuracy=judged))

    points = [two("a", 20.0, 0.8, 0.5), two("b", 20.0, 0.7, 0.6)]
    assert [points[0].accuracy(task) for task in ("detect", "segment", "caption")] == [
        0.8,
        0.8,
        0.5,
    ]
    assert [one.label for one in front(points, "caption")] == ["b"]
    head, first, second = sweep_rows(points)
    assert head[4:6] == ["detect box_ap", "caption exact_match"]
    assert first[4:6] == ["0.8000", "0.5000"]
    assert (first[-1], second[-1]) == ("detect, segment", "caption")
    unjudged = dataclasses.replace(points[0].result, accuracy={})
    assert Point("c", unjudged).accuracy("detect") is None
    head, row = sweep_rows([Point("c", unjudged)])
    assert len(head) == len(row) == 7
    assert "accuracy was not measured" in front_plot([Point("c", unjudged)], "detect")


def test_files_of_a_sweep(tmp_path: Path) -> None:
    found = Sweep(tuple(POINTS), {"int3": "output 'x' is wrong"})
    names = {path.name for path in write_sweep(found, tmp_path)}
    assert {"000.json", "003.json", "sweep.md", "detect.svg"} <= names
    lines = (tmp_path / "sweep.md").read_text().splitlines()
    assert len(lines) == 2 + len(POINTS) + 2
    assert lines[-1] == "left out: int3: output 'x' is wrong"
    picture = ElementTree.fromstring((tmp_path / "detect.svg").read_text())
    circles = [one for one in picture.iter() if one.tag.endswith("circle")]
    filled = [one.get("fill") != "none" for one in circles]
    # In the plot, and in the list below it.
    assert filled == [True, True, True, False] * 2


def test_no_number_of_a_dot_covers_another() -> None:
    alike = [point(f"way {i}", 20.0 + i / 100, 0.8, 100) for i in range(5)]
    picture = ElementTree.fromstring(front_plot([*alike, point("far", 90.0, 0.9, 100)], "detect"))
    texts = [one for one in picture.iter() if one.tag.endswith("text")]
    places = [
        (float(one.get("x", "")), float(one.get("y", "")))
        for one in texts
        if one.get("text-anchor") == "middle" and one.get("class") is None
    ]
    assert len(places) == 6
    assert min(math.dist(a, b) for a, b in itertools.combinations(places, 2)) > 12


def test_every_combination(tmp_path: Path) -> None:
    asked: list[Any] = []

    def bench(path: Path, workload: Workload, options: BenchOptions) -> Result:
        asked.append((path.name, workload.image_px, len(workload.classes), options.threads))
        return made_up_result()

    compiled: list[Recipe] = []

    def compile_bundle(recipe: Recipe) -> Path:
        compiled.append(recipe)
        return tmp_path / f"{recipe.llm}-{recipe.block}"

    judged: list[str] = []

    def accuracy(path: Path, images: int) -> dict[str, dict[str, float]]:
        judged.append(path.name)
        return {"detect": {"box_ap": 0.5}}

    grid = Grid(("fp32", "int4"), (32, 128), threads=(1, 2), sizes=((64, 64),), class_counts=(1, 2))
    options = BenchOptions(accuracy_pictures=4)
    points = run_sweep(
        grid, compile_bundle, WORKLOAD, options, measure=bench, accuracy=accuracy
    ).points
    # fp32 has no blocks.
    assert compiled == [Recipe(), Recipe("int4", 32), Recipe("int4", 128)]
    assert judged == ["fp32-0", "int4-32", "int4-128"]
    assert len(points) == len(set(asked)) == 3 * 2 * 2
    assert (
        points[0].label == "LLM fp32, 1 threads, 1 classes" and points[0].accuracy("detect") == 0.5
    )
    assert points[-1].label == "LLM int4 b128, 2 threads, 2 classes"


def test_a_bundle_that_the_gate_refuses_is_left_out(tmp_path: Path) -> None:
    def compile_bundle(recipe: Recipe) -> Path:
        if recipe.vision == "int8":
            raise ParityError("output 'x' is wrong")
        return tmp_path

    def found(*visions: str) -> Sweep:
        grid = Grid(("fp32",), visions=visions, class_counts=(1, 2))
        return run_sweep(
            grid,
            compile_bundle,
            WORKLOAD,
            BenchOptions(),
            measure=lambda path, workload, options: made_up_result(),
            accuracy=lambda path, images: {},
        )

    some = found("int8", "fp32")
    assert [one.label for one in some.points] == [
        "vision fp32, 1 classes",
        "vision fp32, 2 classes",
    ]
    assert some.refused == {"vision int8, 1 classes": "output 'x' is wrong"}
    with pytest.raises(ParityError, match="output 'x' is wrong"):
        found("int8")


def test_recipes_are_every_combination() -> None:
    grid = Grid(("int4",), (32,), ("fp32", "int8"), (None, 10), ("cpu", "h100"))
    recipes = grid.recipes()
    assert len(recipes) == len(set(recipes)) == 2 * 2 * 2
    assert recipes[0] == Recipe("int4", 32, "fp32", None, "cpu")
    assert recipes[-1] == Recipe("int4", 32, "int8", 10, "h100")
    labels = [grid.label(recipe, None, (64, 64), 3) for recipe in recipes]
    assert labels[0] == "cpu, vision fp32, all queries"
    assert labels[-1] == "h100, vision int8, 10 queries"


def test_a_label_names_only_what_varies() -> None:
    recipe = Recipe("int4", 32, None, None, "cpu")
    assert Grid(("int4",)).label(recipe, None, (64, 64), 3) == "LLM int4"
    assert Grid(("int4",), sizes=((64, 64), (96, 64))).label(recipe, None, (96, 64), 3) == "64x96"
    stages = "vision_encoder=int8,det_backbone=int8,fp32"
    own = Grid(("int4",), visions=(stages, "fp32"))
    label = own.label(Recipe(vision=stages), None, (64, 64), 3)
    assert label == "vision_encoder + det_backbone int8, others fp32"
    assert Grid(("int4",), (32, 64)).label(recipe, None, (64, 64), 3) == "LLM int4 b32"


@pytest.fixture
def released(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_for(RELEASED)))
    return folder


def with_gpu(monkeypatch: pytest.MonkeyPatch, found: Gpu | NoGpu) -> list[str]:
    """This machine has that GPU, and a builder for every target; returns who was asked for."""
    asked: list[str] = []
    monkeypatch.setattr("visionllm_edge.runtime.engines.gpu.find_gpu", lambda: found)
    monkeypatch.setattr(
        "visionllm_edge.runtime.engines.kit_build.check_machine",
        lambda target: asked.append(target.name),
    )
    return asked


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(queries=901), "queries: expected 2 to 900"),
        (Recipe(vision="fp16"), "target 'cpu': precision 'fp16' expected one of fp32, int8"),
        (Recipe(vision="det_masks=fp16"), "target 'cpu': precision 'fp16' expected one of"),
        (Recipe(vision="abacus=int8"), "no stage 'abacus'"),
        (Recipe(vision="int8,fp32"), "given twice"),
        (Recipe(target="abacus"), "target 'abacus': expected one of cpu"),
        (Recipe(target="h100"), "'h100' expected a GPU of compute capability 9.0 .*: no driver"),
    ],
)
def test_what_cannot_be_measured_here_is_refused_first(
    released: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, message: str
) -> None:
    asked = with_gpu(monkeypatch, NoGpu("no driver"))
    check_recipes([Recipe(), Recipe(vision="int8", queries=300)], released)
    with pytest.raises(EdgeError, match=message):
        check_recipes([Recipe(), recipe], released)
    assert not asked


def test_engines_are_measured_on_their_device_only(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = with_gpu(monkeypatch, Gpu("A card", 89, 2**30, "13.0"))
    check_recipes([Recipe(target="rtx-ada", vision="fp8"), Recipe()], released)
    assert asked == ["rtx-ada"]
    with pytest.raises(BackendError, match=r"'h100' .* 9\.0 .* got: A card \(8\.9\)"):
        check_recipes([Recipe(target="h100")], released)


@pytest.mark.parametrize(
    ("recipe", "compiled_as", "engines"),
    [
        (Recipe("int4", 64, "int8", 10), ("int8", {}, 10), None),
        (Recipe(vision="det_masks=int8"), (None, {"det_masks": "int8"}, None), None),
        (Recipe(), (None, {}, None), None),
        # The language model of engines keeps the target's precision.
        (
            Recipe(vision="int8", target="rtx-ada"),
            (None, {}, None),
            ("int8", {"llm_decoder": "fp16"}),
        ),
        (Recipe(target="rtx-ada"), (None, {}, None), (None, {"llm_decoder": "fp16"})),
    ],
)
def test_a_bundle_follows_its_recipe(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: Recipe,
    compiled_as: tuple[str | None, dict[str, str], int | None],
    engines: tuple[str | None, dict[str, str]] | None,
) -> None:
    made: list[Any] = []

    def compile_checkpoint(checkpoint: Path, output: Path, **options: Any) -> Any:
        made.append((options["precision"], options["stage_precision"], options["queries"]))
        llm = options["llm"]
        assert (llm.weights, llm.block_size) == (recipe.llm, recipe.block)
        return SimpleNamespace(bundle=output)

    def make_kit(bundle: Path, output: Path, target: str, options: KitOptions) -> None:
        made.append((options.precision, options.stage_precision))
        assert target == recipe.target

    monkeypatch.setattr("visionllm_edge.export.compile.compile_checkpoint", compile_checkpoint)
    monkeypatch.setattr("visionllm_edge.export.kit.make_kit", make_kit)
    monkeypatch.setattr(
        "visionllm_edge.runtime.engines.kit_build.build_kit",
        lambda kit, output: SimpleNamespace(bundle=output),
    )
    bundle = compiler(tmp_path / "checkpoint", tmp_path)(recipe)
    assert made == [compiled_as] + ([] if engines is None else [engines])
    assert bundle.parent == tmp_path / "bundles"
    if recipe.llm == "int4":
        assert bundle.name == "int4-b64-vision-int8-q10"


def test_more_classes_than_names() -> None:
    with pytest.raises(InputError, match="at most 42 classes, got 99"):
        run_sweep(
            Grid(class_counts=(99,)),
            lambda recipe: Path(),
            WORKLOAD,
            BenchOptions(),
            measure=lambda path, workload, options: made_up_result(),
            accuracy=lambda path, images: {},
        )
