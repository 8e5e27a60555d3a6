"""``chat`` over a toy model with questions from a pipe."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.language_model import LanguageModel
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.pipelines.loading import LoadOptions
from visionllm_edge.runtime.prompts import Text, scripted_answer


@pytest.fixture
def talk(toy: Any, tmp_path: Path, photo: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(255 - photo).save(tmp_path / "other.png")
    toy.reply("hello", (Text("Hello."),))
    toy.reply("find", scripted_answer(["cat"]))
    load = "visionllm_edge.runtime.cli.chat.load_model"
    monkeypatch.setattr(load, lambda *_, **__: VisionLLM(toy.pipeline))
    monkeypatch.chdir(tmp_path)

    def call(*lines: str, arguments: tuple[str, ...] = ("--image", "photo.png")) -> Result:
        text = "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")
        return CliRunner().invoke(main, ["chat", "bundle", *arguments], input=text)

    return call


def test_questions_are_answered_in_order(talk: Any, toy: Any) -> None:
    result = talk("hello", "", "find it", "/quit", "hello")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == ["Hello.", "Sure, here are results for cat[DET]."]
    assert "Hello." not in lines[1:]
    assert toy.calls("vision_encoder") == 1


def test_objects_follow_the_words(talk: Any) -> None:
    result = talk("find it", arguments=("--image", "photo.png", "--threshold", "0"))
    lines = result.stdout.splitlines()
    assert len(lines) > 1 and all(line.startswith("cat  ") for line in lines[1:])
    assert "mask" in lines[1]


def test_save_reset_and_another_picture(talk: Any, toy: Any, tmp_path: Path) -> None:
    result = talk("hello", "/save out.png", "/image other.png", "hello", "/reset", "hello", "/help")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["Hello."] * 3
    assert "saved out.png" in result.stderr and "/reset" in result.stderr
    assert (tmp_path / "out.png").exists()
    assert toy.calls("vision_encoder") == 2


@pytest.mark.parametrize(
    "line",
    ["/image none.png", "/image", "/save", "/save out.png", "/nope", "\udcff", "hello " * 400],
)
def test_an_error_is_said_and_the_conversation_goes_on(talk: Any, line: str) -> None:
    result = talk(line, "hello")
    assert result.stdout == "Hello.\n"
    assert result.stderr.startswith("Error: ")
    assert result.exit_code == 1


def test_without_a_picture(talk: Any) -> None:
    result = talk("hello", arguments=())
    assert (result.exit_code, result.stdout) == (0, "Hello.\n")


def test_a_bad_first_picture_ends_at_once(talk: Any) -> None:
    result = talk("hello", arguments=("--image", "none.png"))
    assert result.exit_code == 1 and result.stdout == ""


def test_a_language_model_alone_talks_without_pictures(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.reply("hello", (Text("Hello."),))
    load = "visionllm_edge.runtime.cli.chat.load_model"
    monkeypatch.setattr(load, lambda *_, **__: LanguageModel(toy.text_pipeline()))

    def call(*lines: str, arguments: tuple[str, ...] = ()) -> Result:
        text = "".join(line + "\n" for line in lines)
        return CliRunner().invoke(main, ["chat", "bundle", *arguments], input=text)

    assert call("hello", "/reset", "hello").stdout.splitlines() == ["Hello."] * 2
    for refused in (call("hello", "/image a.png", "hello"), call("hello", "/save a.png", "hello")):
        assert refused.stdout.splitlines() == ["Hello."] * 2
        assert refused.exit_code == 1 and "Error: " in refused.stderr
    assert "language model alone" in call(arguments=("--image", "a.png")).stderr


def test_the_family_decides_which_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from visionllm_edge.runtime.cli import chat

    for family, expected in (("llama", "language"), ("visionllm_v2", "vision")):
        bundle = SimpleNamespace(manifest=SimpleNamespace(family=family))
        monkeypatch.setattr(Bundle, "open", lambda path, verify, bundle=bundle: bundle)
        monkeypatch.setattr(LanguageModel, "from_bundle", lambda *_: "language")
        monkeypatch.setattr(VisionLLM, "from_bundle", lambda *_: "vision")
        found: Any = chat.load_model(Path("x"), LoadOptions(), verify=True)
        assert found == expected
