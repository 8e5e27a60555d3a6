"""``run`` over a toy model: options, output, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.prompts import Text, scripted_answer, scripted_grounding


@pytest.fixture
def picture(tmp_path: Path, photo: Any) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    return str(path)


@pytest.fixture
def ask(toy: Any, picture: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    toy.reply("analyze", scripted_answer(["cat", "dog"]))
    toy.reply("locate", scripted_grounding())
    toy.reply("describe", (Text("A cat."),))
    toy.reply("colour", (Text("red\x1b[31m"),))
    toy.reply("find", scripted_answer(["cat"]))

    def load(path: Path, *, threads: int | None = None, verify: bool = True) -> VisionLLM:
        return VisionLLM(toy.pipeline)

    monkeypatch.setattr(VisionLLM, "load", load)

    def call(*arguments: str, image: str = picture) -> Result:
        return CliRunner().invoke(main, ["run", "bundle", "--image", image, *arguments])

    return call


def test_detect_prints_words_and_a_line_for_each_object(ask: Any) -> None:
    result = ask("--task", "detect", "--classes", "cat, dog", "--threshold", "0", "--top-k", "3")
    assert result.exit_code == 0, result.output
    first, *lines = result.stdout.splitlines()
    assert first == "Sure, here are results for cat[DET], dog[DET]."
    assert len(lines) == 3
    assert all(line.split("  ")[0] in ("cat", "dog") and " x " in line for line in lines)
    assert result.stderr == ""


def test_json_is_one_document(ask: Any) -> None:
    result = ask(
        "--task", "segment", "--classes", "cat", "--threshold", "0", "--top-k", "2", "--json"
    )
    data = json.loads(result.stdout)
    assert data["classes"] == ["cat"] and len(data["detections"]) == 2
    assert all("mask_rle" in found for found in data["detections"])


def test_free_mode_streams_words_then_objects(ask: Any) -> None:
    result = ask(
        "--task", "detect", "--classes", "cat,dog", "--mode", "free", "--stream",
        "--threshold", "0", "--top-k", "1",
    )  # fmt: skip
    first, second = result.stdout.splitlines()
    assert first == "Sure, here are results for cat[DET], dog[DET]."
    assert second.startswith(("cat  ", "dog  "))


def test_a_json_stream_is_an_event_on_each_line(ask: Any) -> None:
    result = ask("--task", "caption", "--stream", "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert {event["event"] for event in events[:-1]} == {"token"}
    assert "".join(event["text"] for event in events[:-1]) == "A cat."
    assert events[-1]["event"] == "done" and events[-1]["result"]["text"] == "A cat."


def test_words_cannot_steer_the_terminal(ask: Any) -> None:
    for extra in ([], ["--stream"]):
        result = ask("--task", "vqa", "--question", "what colour?", *extra)
        assert result.stdout == "red\ufffd[31m\n"


def test_ground_chat_and_limits(ask: Any) -> None:
    ground = ask("--task", "ground", "--expression", "the cat, left", "--masks", "--json")
    assert [d["label"] for d in json.loads(ground.stdout)["detections"]] == ["the cat, left"]
    chat = ask("--task", "chat", "--question", "find it", "--threshold", "0", "--json")
    assert json.loads(chat.stdout)["spans"] == [{"routing": "[DET]", "label": "cat", "index": 0}]
    short = ask("--task", "caption", "--max-new-tokens", "2", "--json")
    assert json.loads(short.stdout)["finish_reason"] == "length"


def test_sampling_options_reach_the_model(ask: Any, toy: Any) -> None:
    toy.decoder.replies.clear()
    options = ["--temperature", "2.0", "--top-p", "0.9", "--sample-top-k", "40"]

    def said(seed: str) -> str:
        result = ask("--task", "caption", "--max-new-tokens", "12", "--seed", seed, *options)
        assert result.exit_code == 0
        text: str = result.stdout
        return text

    assert said("1") == said("1")
    assert len({said(str(seed)) for seed in range(4)}) > 1


def test_save_writes_a_picture(ask: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    result = ask("--task", "detect", "--classes", "cat", "--threshold", "0", "--save", str(path))
    assert result.exit_code == 0
    assert "saved" in result.stderr and "saved" not in result.stdout
    with Image.open(path) as saved:
        assert min(saved.size) >= 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "detect"], "--classes"),
        (["--task", "ground"], "--expression"),
        (["--task", "vqa"], "--question"),
        (["--task", "caption", "--classes", "cat"], "--classes"),
        (["--task", "detect", "--classes", "a", "--threshold", "2"], "threshold"),
        (["--task", "detect", "--classes", "a", "--top-k", "0"], "top-k"),
        (["--task", "vqa", "--question", "a", "--temperature", "-1"], "temperature"),
        (["--task", "dance"], "dance"),
        ([], "--task"),
    ],
)
def test_wrong_usage_is_exit_code_2(ask: Any, toy: Any, arguments: list[str], message: str) -> None:
    result = ask(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr and result.stdout == ""
    assert toy.decoder.log == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "detect", "--classes", ""], "at least one"),
        (["--task", "detect", "--classes", "a,,b"], "empty"),
        (["--task", "detect", "--classes", "a,a"], "once"),
        (["--task", "detect", "--classes", ",".join(f"c{i}" for i in range(257))], "256"),
        (["--task", "vqa", "--question", " "], "question"),
        (["--task", "vqa", "--question", "why " * 1000], "positions"),
        (["--task", "caption", "--save", "none/there/x.png"], "folder"),
        (["--task", "caption", "--save", "x.sandwich"], "ending"),
    ],
)
def test_wrong_input_is_exit_code_1_before_any_work(
    ask: Any, toy: Any, arguments: list[str], message: str
) -> None:
    result = ask(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ") and message in result.stderr
    assert result.stdout == "" and toy.decoder.log == []


def test_a_bad_picture_is_exit_code_1(ask: Any, tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    path.write_text("no picture")
    for name in (str(path), str(tmp_path / "none.png"), str(tmp_path)):
        result = ask("--task", "caption", image=name)
        assert result.exit_code == 1 and result.stderr.startswith("Error: image")


def test_a_folder_that_is_no_bundle_is_exit_code_1(tmp_path: Path, picture: str) -> None:
    result = CliRunner().invoke(
        main, ["run", str(tmp_path), "--image", picture, "--task", "caption"]
    )
    assert result.exit_code == 1
    assert "manifest.json" in result.stderr
