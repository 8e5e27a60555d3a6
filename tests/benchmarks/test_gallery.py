"""The gallery asks every task once and draws what came back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from visionllm_edge.benchmarks.gallery import make_gallery, tasks_of
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.results import (
    Detection,
    DetectionResult,
    GroundedCaptionResult,
    ImageResult,
    PoseResult,
    SemanticResult,
    TextResult,
)

ALL = [
    "detect", "segment", "ground", "grounded-caption", "semantic", "vqa", "region",
    "interactive", "pose", "generate", "edit",
]  # fmt: skip
SIZE = (128, 128)
FOUND = (Detection("red circle", 0.9, (10.0, 10.0, 60.0, 60.0)),)


class Answers:
    """Answers anything at once, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[Any, ...]] = {}

    def _note(self, name: str, *given: Any) -> None:
        self.asked[name] = given

    def detect(self, image: Any, classes: Any) -> DetectionResult:
        self._note("detect", classes)
        return DetectionResult(SIZE, FOUND, "found", tuple(classes))

    def segment(self, image: Any, classes: Any = (), regions: Any = None) -> DetectionResult:
        self._note("segment" if regions is None else "interactive", classes, regions)
        return DetectionResult(SIZE, FOUND, "found")

    def ground(self, image: Any, expression: str, masks: bool) -> DetectionResult:
        self._note("ground", expression)
        return DetectionResult(SIZE, FOUND, "found")

    def grounded_caption(self, image: Any) -> GroundedCaptionResult:
        return GroundedCaptionResult(SIZE, "a red circle.", (), FOUND)

    def semantic(self, image: Any, classes: Any) -> SemanticResult:
        return SemanticResult(SIZE, tuple(classes), np.zeros(SIZE, np.int16))

    def vqa(self, image: Any, question: str) -> TextResult:
        self._note("vqa", question)
        return TextResult("two", question)

    def describe(self, image: Any, region: Any) -> TextResult:
        self._note("region", region)
        return TextResult("a red circle")

    def pose(self, image: Any, objects: Any) -> PoseResult:
        self._note("pose", objects)
        return PoseResult(SIZE, (), "", tuple(objects), ())

    def generate(self, prompt: str, seed: int) -> ImageResult:
        self._note("generate", prompt)
        return ImageResult(np.zeros((64, 64, 3), np.uint8), prompt, seed, 20, "ddim")

    def edit(self, image: Any, instruction: str, seed: int) -> ImageResult:
        self._note("edit", instruction)
        return ImageResult(np.zeros((64, 64, 3), np.uint8), instruction, seed, 20, "ddim")


def spec(**parts: Any) -> Any:
    none = {"detector": None, "pose": None, "generation": None, "editing": None, "regions": False}
    return SimpleNamespace(**{**none, **parts})


def test_a_bundle_shows_what_it_has() -> None:
    assert tasks_of(spec()) == ["vqa"]
    assert tasks_of(spec(regions=True)) == ["vqa", "region"]
    everything = spec(detector=1, pose=1, generation=1, editing=1, regions=True)
    assert tasks_of(everything) == ALL


def test_every_task_is_asked_and_drawn(tmp_path: Path) -> None:
    model: Any = Answers()
    entries = list(make_gallery(model, ALL, tmp_path / "out", seed=3))
    assert [entry.task for entry in entries] == ALL
    assert set(model.asked) == set(ALL) - {"grounded-caption", "semantic"}
    assert all(entry.asked and entry.truth for entry in entries)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{task}.png" for task in ALL} | {"gallery.png"}
    with Image.open(tmp_path / "out" / "gallery.png") as sheet:
        assert sheet.width == 4 * 328 + 8 and sheet.height > 3 * 300
    # The box of the question is on the picture that is shown.
    region = np.asarray(entries[ALL.index("region")].picture).astype(int)
    assert (np.abs(region - [255, 0, 160]).max(axis=2) < 40).sum() > 100


def test_a_seed_asks_the_same_again(tmp_path: Path) -> None:
    asked = []
    for seed in (1, 1, 2):
        model: Any = Answers()
        list(make_gallery(model, ALL, tmp_path, seed=seed))
        asked.append(model.asked)
    assert asked[0] == asked[1] != asked[2]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = SimpleNamespace(manifest=SimpleNamespace(model=spec(generation=1)))
    monkeypatch.setattr(Bundle, "open", lambda path: opened)
    monkeypatch.setattr(VisionLLM, "from_bundle", lambda *_: Answers())
    result = CliRunner().invoke(main, ["gallery", "bundle", "-o", str(tmp_path / "g")])
    assert result.exit_code == 0, result.output
    assert "vqa: " in result.stdout and "  said: two" in result.stdout
    assert "generate: a" in result.stdout and (tmp_path / "g" / "generate.png").is_file()
