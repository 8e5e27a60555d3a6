"""``run`` and ``chat`` for poses, several expressions, grounded captions, classes per pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.images import load_image
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.task_prompts import (
    Phrase,
    generation_answer,
    grounded_caption_answer,
    pose_answer,
)


@pytest.fixture
def ask(full: Any, tmp_path: Path, photo: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    full.reply("localize", grounded_caption_answer([Phrase("a cat"), " sleeps."]))
    full.reply("pinpoint", pose_answer(["cat"], ["nose"]))
    full.reply("paint", generation_answer())
    monkeypatch.setattr(Bundle, "open", lambda path, verify: None)
    monkeypatch.setattr(VisionLLM, "from_bundle", lambda *_: VisionLLM(full.pipeline))
    load = "visionllm_edge.runtime.cli.chat.load_model"
    monkeypatch.setattr(load, lambda *_, **__: VisionLLM(full.pipeline))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["run", "bundle", "--image", "photo.png", *arguments])

    return call


POSE = ("--task", "pose", "--classes", "cat")


def test_pose_prints_an_instance_and_its_keypoints(ask: Any) -> None:
    result = ask(*POSE, "--keypoints", "nose,Left_Eye", "--top-k", "1", "--threshold", "0")
    assert result.exit_code == 0, result.output
    words, head, nose, eye = result.stdout.splitlines()
    assert words.endswith("nose[POSE], left eye[POSE].")
    assert head.startswith("cat  ") and nose.startswith("  nose  x ") and "left eye" in eye


def test_presets_one_name_and_the_benchmark(ask: Any) -> None:
    coco = json.loads(ask(*POSE, "--json").stdout)
    assert len(coco["keypoint_names"]) == 17
    one = json.loads(ask(*POSE, "--keypoints", "nose,", "--benchmark", "--json").stdout)
    assert one["keypoint_names"] == ["nose"] and len(one["poses"]) == 4
    free = json.loads(ask(*POSE, "--mode", "free", "--threshold", "0", "--json").stdout)
    assert free["keypoint_names"] == ["nose"]
    strict = json.loads(ask(*POSE, "--threshold", "0.99", "--nms-iou", "0", "--json").stdout)
    assert strict["poses"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((*POSE, "--keypoints", "coco18"), 1, "preset"),
        ((*POSE, "--keypoints", ",".join(f"p {i}" for i in range(69))), 1, "at most 68"),
        ((*POSE, "--nms-iou", "2"), 2, "nms-iou"),
        (("--task", "pose"), 2, "--classes"),
        ((*POSE, "--expression", "x"), 2, "--expression does not belong"),
        (("--task", "detect", "--classes", "a", "--keypoints", "coco17"), 2, "does not belong"),
        (("--task", "ground"), 2, "--expression"),
        (("--task", "ground", "--expression", "a", "--expression", "a"), 1, "each once"),
        (("--task", "semantic"), 2, "--classes"),
        (("--task", "semantic", "--classes", "a,a"), 1, "each class once"),
    ],
)
def test_wrong_input_is_told(ask: Any, arguments: list[str], code: int, message: str) -> None:
    result = ask(*arguments)
    assert result.exit_code == code
    assert message in result.stderr and "Traceback" not in result.output


def test_several_expressions(ask: Any) -> None:
    result = ask(
        "--task", "ground", "--expression", "the cat", "--expression", "a dog, left", "--json"
    )
    data = json.loads(result.stdout)
    assert data["classes"] == ["the cat", "a dog, left"]
    assert sorted(d["group"] for d in data["detections"]) == [0, 1]


def test_a_grounded_caption_with_offsets(ask: Any) -> None:
    result = ask("--task", "grounded-caption", "--threshold", "0", "--top-k", "1", "--json")
    data = json.loads(result.stdout)
    assert data["text"] == "a cat sleeps."
    assert data["phrases"] == [{"text": "a cat", "start": 0, "end": 5, "group": 0}]
    assert len(data["detections"]) == 1
    plain = ask("--task", "grounded-caption", "--threshold", "0", "--top-k", "1")
    assert plain.stdout.splitlines()[0] == "a cat sleeps."


def test_a_class_for_every_pixel(ask: Any, tmp_path: Path) -> None:
    arguments = ("--task", "semantic", "--classes", "sky,sea", "--threshold", "0")
    result = ask(*arguments, "--save", "map.png", "--json")
    assert result.exit_code == 0, result.output
    assert sum(json.loads(result.stdout)["pixels"].values()) == 40 * 48
    assert (tmp_path / "map.png").exists()
    assert ask(*arguments).stdout.splitlines()[1].startswith("sky  ")


def test_a_pose_can_be_saved_and_streamed(ask: Any, tmp_path: Path) -> None:
    result = ask(*POSE, "--stream", "--json", "--threshold", "0", "--save", "pose.png")
    events = [json.loads(line)["event"] for line in result.stdout.splitlines()]
    assert events.count("group") == 18 and events[-1] == "done" and "pose" in events
    assert (tmp_path / "pose.png").exists()


def talk(*lines: str) -> Result:
    text = "".join(line + "\n" for line in lines)
    return CliRunner().invoke(main, ["chat", "bundle", "--image", "photo.png"], input=text)


def test_a_chat_answers_every_routing_token(ask: Any, tmp_path: Path) -> None:
    result = talk("pinpoint it", "paint it", "/save made.png", "localize them", "/save seen.png")
    assert result.exit_code == 0, result.output
    assert "  nose  x " in result.stdout and "picture 24 x 16" in result.stdout
    assert load_image(tmp_path / "made.png").shape == (16, 24, 3)
    assert max(load_image(tmp_path / "seen.png").shape) > 600


def test_a_chat_goes_on_after_a_token_without_a_decoder(
    ask: Any, make_full: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = make_full(without="generate")
    lacking.reply("paint", generation_answer())
    lacking.reply("pinpoint", pose_answer(["cat"], ["nose"]))
    load = "visionllm_edge.runtime.cli.chat.load_model"
    monkeypatch.setattr(load, lambda *_, **__: VisionLLM(lacking.pipeline))
    result = talk("paint it", "pinpoint it")
    assert result.exit_code == 1
    assert "[GEN]" in result.stderr and "use_sd" in result.stderr
    assert "nose[POSE]" in result.stdout
