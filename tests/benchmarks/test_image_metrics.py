"""Scores of made pictures: a model that draws the truth gets full marks, and each fault shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from visionllm_edge.benchmarks.accuracy import evaluate
from visionllm_edge.benchmarks.clock import Clock
from visionllm_edge.benchmarks.image_metrics import (
    editing_metrics,
    generation_metrics,
    names_seen,
)
from visionllm_edge.runtime.results import Detection, DetectionResult, ImageResult
from visionllm_edge.runtime.shapes_world import COLORS, SHAPES
from visionllm_edge.runtime.shapes_world.edits import draw_sketch


class Painter:
    """Paints words as pixels and reads them back: a picture is a list of names in disguise.

    Pictures of the shapes world that it has not painted it recognises by the sketch they came from.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, fault: str = "", confused: bool = False
    ) -> None:
        self.fault, self.confused = fault, confused
        self.known: dict[bytes, tuple[str, ...]] = {}
        self.sketches: dict[bytes, Any] = {}
        self.asked: list[tuple[str, ...]] = []
        self.seeds: list[int] = []

        def remembered(sketch: Any) -> Any:
            scene = draw_sketch(sketch)
            self.known[scene.image.tobytes()] = sketch.names
            return scene

        monkeypatch.setattr(f"{names_seen.__module__}.draw_sketch", remembered)

    def _painted(self, names: Sequence[str], seed: int) -> ImageResult:
        self.seeds.append(seed)
        image = np.random.default_rng(len(self.known)).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        self.known[image.tobytes()] = tuple(names)
        return ImageResult(image, "", seed, 1, "ddim")

    def generate(self, prompt: str, *, seed: int) -> ImageResult:
        names = [words.split(" ", 1)[1] for words in prompt.split(" and ")]
        if self.fault == "forgets the second":
            names = names[:1]
        if self.fault == "wrong colour":
            names = [_other_color(name) for name in names]
        return self._painted(names, seed)

    def edit(self, image: NDArray[np.uint8], instruction: str, *, seed: int) -> ImageResult:
        names = list(self.known[image.tobytes()])
        words = instruction.split()
        if words[0] == "remove":
            names.remove(" ".join(words[2:]))
        elif words[0] == "make":
            old = " ".join(words[2:4])
            names[names.index(old)] = f"{words[4]} {words[3]}"
        else:
            old = " ".join(words[2:4])
            names[names.index(old)] = f"{words[2]} {words[-1]}"
        if self.fault == "leaves it":
            names = list(self.known[image.tobytes()])
        if self.fault == "loses the others":
            names = [n for n in names if n not in self.known[image.tobytes()]]
        return self._painted(names, seed)

    def detect(
        self, image: NDArray[np.uint8], classes: Sequence[str], *, threshold: float, top_k: int
    ) -> DetectionResult:
        self.asked.append(tuple(classes))
        names = self.known[image.tobytes()]
        found = [
            Detection(label, 0.9 if label == name else 0.5, (20.0 * i, 0.0, 20.0 * i + 10, 10.0))
            for i, name in enumerate(names)
            for label in classes
            if label == name or (self.confused and label.split()[1] == name.split()[1])
        ]
        return DetectionResult((64, 64), tuple(found), "", tuple(classes))


def _other_color(name: str) -> str:
    color, shape = name.split()
    return f"{COLORS[(COLORS.index(color) + 1) % len(COLORS)]} {shape}"


def test_a_perfect_painter_gets_full_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter(monkeypatch, confused=True)
    reports: list[tuple[int, int]] = []
    clock = Clock()
    found = generation_metrics(
        painter,
        images=6,
        seed=1,
        clock=clock,
        progress=lambda done, total: reports.append((done, total)),
    )
    assert found == {
        "found": 1.0, "found_one": 1.0, "found_two": 1.0, "complete": 1.0,
        "found_in_drawn": 1.0, "figures": 9,
    }  # fmt: skip
    assert reports[-1] == (6, 6) and clock.total_s > 0
    assert painter.seeds == list(range(6))
    for names in painter.asked:
        assert len(names) == len(set(names)) == 8
        assert all(n.split()[0] in COLORS and n.split()[1] in SHAPES for n in names)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("forgets the second", {"found": 6 / 9, "found_one": 1.0, "found_two": 0.5}),
        ("wrong colour", {"found": 0.0, "complete": 0.0, "found_in_drawn": 1.0}),
    ],
)
def test_a_fault_of_generation_shows(
    fault: str, expected: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = generation_metrics(Painter(monkeypatch, fault=fault), images=6, seed=1, clock=Clock())
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_perfect_editor_gets_full_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    found = editing_metrics(Painter(monkeypatch), images=6, seed=2, clock=Clock())
    for name in ("right", "changed", "kept", "right_in_drawn", "changed_recolor",
                 "changed_replace", "changed_remove"):  # fmt: skip
        assert found[name] == 1.0, name
    assert 0.0 < found["psnr_db"] < found["psnr_unedited_db"] < 99.0


@pytest.mark.parametrize(
    ("fault", "changed", "kept"), [("leaves it", 0.0, 1.0), ("loses the others", 1.0, 0.0)]
)
def test_a_fault_of_editing_shows(
    fault: str, changed: float, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = editing_metrics(Painter(monkeypatch, fault=fault), images=6, seed=2, clock=Clock())
    assert (found["changed"], found["kept"], found["right"]) == (changed, kept, 0.0)
    assert found["right_in_drawn"] == 1.0


def test_captions_of_a_seed_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for seed in (4, 4, 5):
        painter = Painter(monkeypatch)
        generation_metrics(painter, images=4, seed=seed, clock=Clock())
        asked.append(painter.asked)
    assert asked[0] == asked[1] != asked[2]


def test_the_best_name_has_a_place() -> None:
    class Model:
        generate: Any = None
        edit: Any = None

        def detect(self, image: Any, classes: Any, *, threshold: float, top_k: int) -> Any:
            boxes = [("red star", 0.6, 0.0), ("blue star", 0.7, 1.0), ("red star", 0.4, 30.0)]
            return DetectionResult(
                (64, 64), tuple(Detection(n, s, (x, 0.0, x + 20, 20.0)) for n, s, x in boxes)
            )

    image = np.zeros((64, 64, 3), np.uint8)
    assert names_seen(Model(), image, ["red star", "blue star"]) == {"blue star", "red star"}


@pytest.mark.parametrize(("task", "metric"), [("generate", "found"), ("edit", "right")])
def test_evaluate_knows_both(task: Any, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = Painter(monkeypatch)
    evaluation = evaluate(model, task, images=3, seed=0)
    assert evaluation.metrics[metric] == 1.0
    assert (evaluation.task, evaluation.images, evaluation.prompts) == (task, 3, None)
