"""Regions on the command line: the options of ``run`` and the commands of ``chat``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.prompts import Text
from visionllm_edge.runtime.regions import Box, Point


@pytest.fixture
def toy(make_toy: Callable[..., Any]) -> Any:
    toy = make_toy(regions=True)
    toy.reply("What is in", (Text("a red circle"),))
    toy.reply("Which of", (Text("star"),))
    return toy


@pytest.fixture
def files(tmp_path: Path, photo: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    mask = np.zeros((40, 48), np.uint8)
    mask[5:20, 7:30] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ask(toy: Any, files: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(Bundle, "open", lambda path, verify: None)
    monkeypatch.setattr(VisionLLM, "from_bundle", lambda *_: VisionLLM(toy.pipeline))

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["run", "bundle", "--image", "photo.png", *arguments])

    return call


@pytest.mark.parametrize(
    "region",
    [
        ("--box", "2,3,20,30"),
        ("--point", "10, 12.5"),
        ("--polygon", "2,3,20,3,10,30"),
        ("--scribble", "2,3 20,30"),
        ("--mask", "mask.png"),
    ],
)
def test_describe_takes_every_kind_of_region(ask: Any, toy: Any, region: tuple[str, str]) -> None:
    result = ask("--task", "describe", *region)
    assert (result.exit_code, result.stdout) == (0, "a red circle\n"), result.output
    assert toy.calls("region_encoder") == 1


def test_classify(ask: Any) -> None:
    result = ask("--task", "classify", "--classes", "circle,star", "--point", "3,4")
    assert (result.exit_code, result.stdout) == (0, "star\n"), result.output


def test_segment_gives_a_mask_for_each_region(ask: Any, toy: Any) -> None:
    result = ask("--task", "segment", "--point", "3,4", "--box", "2,3,20,30", "--json")
    data = json.loads(result.stdout)
    assert [found["label"] for found in data["detections"]] == ["region1", "region2"]
    assert all("mask_rle" in found for found in data["detections"])
    # Boxes come first, whatever the order of the options.
    by_hand = VisionLLM(toy.pipeline).segment("photo.png", regions=[Box(2, 3, 20, 30), Point(3, 4)])
    assert [found["score"] for found in data["detections"]] == pytest.approx(
        [found.score for found in by_hand.detections], abs=1e-4
    )


def test_the_saved_picture_shows_the_region(ask: Any, files: Path, photo: Any) -> None:
    for name, region in (("a.png", "2,3,20,30"), ("b.png", "22,3,40,30")):
        result = ask("--task", "describe", "--box", region, "--save", name)
        assert result.exit_code == 0, result.output
    first, second = (np.asarray(Image.open(files / name)) for name in ("a.png", "b.png"))
    assert first.shape == second.shape and (first != second).any()


def test_chat_takes_regions(ask: Any, toy: Any) -> None:
    result = ask("--task", "chat", "--question", "What is in region1?", "--box", "2,3,20,30")
    assert result.exit_code == 0 and result.stdout.startswith("a red circle"), result.output
    assert toy.calls("region_encoder") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("describe",), 2, "needs one region (--box, --point, --polygon, --scribble, --mask)"),
        (("describe", "--point", "1,1", "--point", "2,2"), 2, "needs one region"),
        (("describe", "--box", "1,2,3"), 2, "expected 4 numbers"),
        (("describe", "--box", "9,2,3,4"), 2, "x1 < x2"),
        (("describe", "--scribble", "1,2,3"), 2, "expected pairs x,y"),
        (("describe", "--point", "x,y"), 2, "expected 2 numbers"),
        (("describe", "--point", "48,3"), 1, "inside the picture of 48x40"),
        (("describe", "--mask", "none.png"), 1, "does not exist"),
        (("classify", "--point", "1,1"), 2, "needs --classes"),
        (("segment",), 2, "needs --classes or regions"),
        (("segment", "--classes", "cat", "--point", "1,1"), 2, "not both"),
        (("caption", "--point", "1,1"), 2, "--point does not belong to --task caption"),
        (("chat", "--question", "hello", "--point", "1,1"), 1, "the word region1"),
    ],
)
def test_wrong_regions(ask: Any, arguments: tuple[str, ...], code: int, message: str) -> None:
    result = ask("--task", *arguments)
    assert result.exit_code == code and not result.stdout
    assert message in " ".join(result.stderr.split())


@pytest.fixture
def talk(toy: Any, files: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    load = "visionllm_edge.runtime.cli.chat.load_model"
    monkeypatch.setattr(load, lambda *_, **__: VisionLLM(toy.pipeline))

    def call(*lines: str, image: bool = True) -> Result:
        arguments = ["--image", "photo.png"] if image else []
        return CliRunner().invoke(main, ["chat", "bundle", *arguments], input="\n".join(lines))

    return call


def test_chat_points_and_asks(talk: Any, toy: Any) -> None:
    result = talk(
        "/box 2,3,20,30", "What is in region1?", "/point 40,20", "/mask mask.png",
        "What is in region2, and in region3?", "hello",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[:2] == ["a red circle"] * 2
    said = [f"region{number} for the next question" for number in (1, 2, 3)]
    assert [line for line in result.stderr.splitlines() if "next" in line] == said
    assert toy.calls("region_encoder") == 2


def test_a_question_that_fails_keeps_the_regions(talk: Any) -> None:
    result = talk("/box 2,3,20,30", "What is this?", "What is in region1?")
    assert result.stdout == "a red circle\n"
    assert "the word region1" in result.stderr and result.exit_code == 1


@pytest.mark.parametrize("line", ["/box 1,2", "/point", "/point 99,1", "/mask none.png"])
def test_a_wrong_region_is_not_kept(talk: Any, line: str) -> None:
    result = talk(line, "/box 2,3,20,30", "What is in region1?")
    assert result.stderr.startswith("Error: ") and result.stdout == "a red circle\n"


def test_reset_forgets_the_regions(talk: Any) -> None:
    result = talk("/point 1,1", "/reset", "/box 2,3,20,30", "What is in region1?")
    assert (result.exit_code, result.stdout) == (0, "a red circle\n"), result.output


def test_regions_without_a_picture(talk: Any) -> None:
    result = talk("/point 1,1", image=False)
    assert "expected a picture to point at" in result.stderr and result.exit_code == 1
