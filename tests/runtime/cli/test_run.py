"""``run`` over a toy model: options, output, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.language_model import LanguageModel
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.pipelines.loading import LoadOptions
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

    monkeypatch.setattr(Bundle, "open", lambda path, verify: None)
    monkeypatch.setattr(VisionLLM, "from_bundle", lambda *_: VisionLLM(toy.pipeline))

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


@pytest.fixture
def write(toy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    toy.reply("sky", (Text("Blue."),))
    seen: list[LoadOptions] = []

    def from_bundle(bundle: None, options: LoadOptions) -> LanguageModel:
        seen.append(options)
        return LanguageModel(toy.text_pipeline())

    monkeypatch.setattr(Bundle, "open", lambda path, verify: None)
    monkeypatch.setattr(LanguageModel, "from_bundle", from_bundle)

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["run", "bundle", "--task", "text", *arguments])

    call.seen = seen  # type: ignore[attr-defined]
    return call


def test_a_language_model_answers_a_prompt(write: Any) -> None:
    plain = write("--prompt", "the sky?", "--context", "64", "--threads", "1")
    assert plain.exit_code == 0, plain.output
    assert plain.stdout == "Blue.\n"
    assert write.seen == [LoadOptions(threads=1, context=64)]
    for word, expected in (("--overlap", True), ("--no-overlap", False)):
        assert write("--prompt", "the sky?", word).exit_code == 0
        assert write.seen.pop() == LoadOptions(overlap=expected)
    assert write("--prompt", "the sky?", "--stream").stdout.strip() == "Blue."
    data = json.loads(write("--prompt", "the sky?", "--json").stdout)
    assert data == {"text": "Blue.", "question": "the sky?", "finish_reason": "stop"}
    guessed = write("--prompt", "the sky?", "--lookup-tokens", "4")
    assert guessed.stdout == plain.stdout


def test_an_answer_out_of_choices(write: Any, ask: Any) -> None:
    assert write("--prompt", "is it?", "--choices", "yes,no").stdout in ("yes\n", "no\n")
    assert write("--prompt", "is", "--raw", "--choices", " it").stdout == " it\n"
    vqa = ask("--task", "vqa", "--question", "is it?", "--choices", "yes,no")
    assert vqa.stdout in ("yes\n", "no\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a", "--image", "x.png"], "--image and --save do not belong"),
        (["--prompt", "a", "--save", "x.png"], "--image and --save do not belong"),
        (["--prompt", "a", "--question", "b"], "--question does not belong to --task text"),
        ([], "--task text needs --prompt"),
    ],
)
def test_options_of_other_tasks_do_not_go_with_text(
    write: Any, arguments: list[str], message: str
) -> None:
    result = write(*arguments)
    assert result.exit_code == 2 and message in result.stderr


@pytest.mark.parametrize("option", [["--choices", "a,b"], ["--raw"], ["--prompt", "a"]])
def test_options_of_text_do_not_go_with_other_tasks(ask: Any, option: list[str]) -> None:
    result = ask("--task", "caption", *option)
    assert result.exit_code == 2 and "does not belong to --task caption" in result.stderr


def test_a_task_about_a_picture_needs_one() -> None:
    result = CliRunner().invoke(main, ["run", "bundle", "--task", "caption"])
    assert result.exit_code == 2 and "--task caption needs --image" in result.stderr
