"""Generate and edit, from words to a picture, over toy stages; and the command line of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from tests.runtime.diffusion.toy_chain import toy_maker
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.diffusion.image_maker import ImageOptions
from visionllm_edge.runtime.errors import BackendError, InputError, StoppedError
from visionllm_edge.runtime.events import DoneEvent, Event, GroupEvent, ImageEvent, ProgressEvent
from visionllm_edge.runtime.llm import SuperLink
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2, VisionSettings
from visionllm_edge.runtime.prompts import Turn
from visionllm_edge.runtime.task_prompts import (
    edit_answer,
    edit_question,
    generation_answer,
    generation_question,
)

DIM = 16


class ToyPictures:
    """A toy model that makes pictures; the stages of both chains can be looked at."""

    def __init__(self, toy: Any, *, generates: bool = True, edits: bool = True) -> None:
        rng = np.random.default_rng(8)

        def link(name: str, token: str, decoder: str) -> SuperLink:
            return SuperLink(name, (token,), rng.normal(0, 1, (7, DIM)).astype(np.float32), decoder)

        self.generator = toy_maker("gen", DIM) if generates else None
        self.editor = toy_maker("edit", DIM) if edits else None
        self.pipeline = VisionLLMv2(
            stages=toy.stages,
            tokenizer=toy.tokenizer,
            session=toy.session,
            links=(link("gen", "[GEN]", "generate"), link("edit", "[EDIT]", "edit")),
            vision=VisionSettings(8, 4, 4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            detector=None,
            template="vicuna_v1",
            generator=self.generator,
            editor=self.editor,
        )
        self.model = VisionLLM(self.pipeline)


@pytest.fixture
def with_edit(make_toy: Any, make_tokenizer: Any) -> Any:
    return make_toy(tokenizer=make_tokenizer("[EDIT]"))


@pytest.fixture
def pictures(with_edit: Any) -> ToyPictures:
    return ToyPictures(with_edit)


def hidden_rows(pipeline: VisionLLMv2, turn: Turn, picture: Any) -> NDArray[np.float32]:
    """States of the rows behind the last routing token, by a session run of its own."""
    sequence = pipeline.prompt((turn,), picture)
    (group,) = sequence.groups
    rows = range(group.position + 1, group.position + 1 + group.rows)
    hidden = pipeline.session.run(sequence, hidden=list(rows)).hidden_rD
    assert hidden is not None and hidden.shape == (7, DIM)
    return hidden


def finished(run: Any) -> Any:
    while True:
        try:
            next(run)
        except StopIteration as end:
            return end.value


def test_generate_makes_a_picture_of_the_caption(pictures: ToyPictures) -> None:
    events: list[Event] = []
    made = pictures.model.generate('A "red" circle.', seed=5, size=(16, 24), stream=events.append)
    assert made.image.shape == (16, 24, 3) and made.image.dtype == np.uint8
    assert (made.text, made.seed, made.steps, made.scheduler) == ("a red circle", 5, 3, "pndm")
    kinds = [type(event) for event in events]
    assert kinds == [GroupEvent, *[ProgressEvent] * 4, ImageEvent, DoneEvent]
    assert events[0] == GroupEvent("[GEN]", "a red circle", 0)
    assert events[1] == ProgressEvent("generate", 1, 4)
    # The same by hand: the words in training form, without a picture, rows of [GEN] to the chain.
    maker = pictures.pipeline.maker("generate")
    turn = Turn(generation_question("a red circle"), generation_answer())
    hidden = hidden_rows(pictures.pipeline, turn, None)
    plan = maker.plan(ImageOptions(seed=5, size=(16, 24)))
    assert np.array_equal(finished(maker.make(hidden, plan)), made.image)


def test_edit_sees_the_picture_and_the_instruction(
    pictures: ToyPictures, photo: NDArray[np.uint8]
) -> None:
    events: list[Event] = []
    made = pictures.model.edit(photo, "make it blue.", seed=2, stream=events.append)
    assert made.image.shape == (32, 40, 3)  # 40 x 48 with a shorter side of 32, multiples of 8
    assert made.text == "make it blue" and made.scheduler == "euler_ancestral"
    assert events[0] == GroupEvent("[EDIT]", "make it blue", 0)
    assert [e.step for e in events if isinstance(e, ProgressEvent)] == [1, 2, 3]
    maker = pictures.pipeline.maker("edit")
    turn = Turn(edit_question("make it blue"), edit_answer())
    hidden = hidden_rows(pictures.pipeline, turn, pictures.pipeline.open(photo))
    plan = maker.plan(ImageOptions(seed=2), photo.shape[:2])
    assert np.array_equal(finished(maker.make(hidden, plan, photo)), made.image)
    other = pictures.model.edit(255 - photo, "make it blue.", seed=2)
    assert not np.array_equal(other.image, made.image)


def test_a_seed_is_drawn_and_told(pictures: ToyPictures) -> None:
    made = pictures.model.generate("a cat", scheduler="euler_ancestral")
    again = pictures.model.generate("a cat", scheduler="euler_ancestral", seed=made.seed)
    assert np.array_equal(made.image, again.image)
    assert made.scheduler == "euler_ancestral"


def test_the_step_callback_may_end_the_run(pictures: ToyPictures) -> None:
    seen: list[tuple[int, int]] = []

    def second_step(done: int, total: int) -> bool:
        seen.append((done, total))
        return done < 2

    with pytest.raises(StoppedError, match="generate: stopped by the step callback after 2 of 9"):
        pictures.model.generate("a cat", steps=8, on_step=second_step)
    assert seen == [(1, 9), (2, 9)]
    assert pictures.model.generate("a cat", steps=1, on_step=lambda *_: None).steps == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p: m.generate("  "), "prompt: expected some text"),
        (lambda m, p: m.generate("..."), "prompt '...': expected words, got punctuation"),
        (lambda m, p: m.generate("a\ncat"), "prompt 'a\\\\ncat': expected one line"),
        (lambda m, p: m.generate("a cat", size=(20, 16)), "size: expected .height, width."),
        (lambda m, p: m.generate("a cat", steps=0), "steps: expected a whole number"),
        (lambda m, p: m.edit(None, "make it blue"), "edit: expected a picture to edit, got none"),
        (lambda m, p: m.edit(p, "!"), "instruction '!': expected words"),
        (lambda m, p: m.edit(p, "blue", image_guidance=-1.0), "image_guidance: expected a number"),
        (lambda m, p: m.edit("missing.png", "make it blue"), "does not exist"),
    ],
)
def test_refuses_before_any_work(
    call: Callable[[VisionLLM, Any], Any],
    message: str,
    pictures: ToyPictures,
    with_edit: Any,
    photo: NDArray[np.uint8],
) -> None:
    with pytest.raises(InputError, match=message):
        call(pictures.model, photo)
    assert with_edit.decoder.log == []


def test_refuses_a_bundle_without_the_decoder(with_edit: Any, photo: NDArray[np.uint8]) -> None:
    model = ToyPictures(with_edit, generates=False, edits=False).model
    with pytest.raises(InputError, match="generate: expected a bundle with the stages that make"):
        model.generate("a cat")
    with pytest.raises(InputError, match="edit: expected a bundle with the stages that make"):
        model.edit(photo, "make it blue")


@pytest.fixture
def ask(pictures: ToyPictures, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setattr(Bundle, "open", lambda path, verify: None)
    monkeypatch.setattr(VisionLLM, "from_bundle", lambda *_: pictures.model)
    return lambda *arguments: CliRunner().invoke(main, ["run", "bundle", *map(str, arguments)])


def test_command_generates(ask: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    result = ask("--task", "generate", "--prompt", "A cat", "--size", "24x16", "--steps", 2,
                 "--seed", 7, "--scheduler", "ddim", "--save", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == "a cat\npicture 24 x 16  seed 7  2 steps of ddim\n"
    with Image.open(out) as saved:
        assert saved.size == (24, 16)
    again = ask("--task", "generate", "--prompt", "a cat", "--size", "24x16", "--steps", 2,
                "--seed", 7, "--scheduler", "ddim", "--save", tmp_path / "again.png", "--json",
                "--stream")  # fmt: skip
    events = [json.loads(line) for line in again.stdout.splitlines()]
    assert [e["event"] for e in events] == ["group", "progress", "progress", "image", "done"]
    assert events[-1]["result"]["seed"] == 7
    assert (tmp_path / "again.png").read_bytes() == out.read_bytes()


def test_command_edits(
    ask: Callable[..., Result], tmp_path: Path, photo: NDArray[np.uint8]
) -> None:
    source, out = tmp_path / "photo.png", tmp_path / "out.png"
    Image.fromarray(photo).save(source)
    result = ask("--task", "edit", "--image", source, "--instruction", "make it blue",
                 "--size", "16", "--guidance", 3, "--image-guidance", 2, "--save", out,
                 "--stream")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "edit 3/3" in result.stderr
    assert result.stdout.startswith("picture 16 x 16  seed ")
    with Image.open(out) as saved:
        assert saved.size == (16, 16)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody looks at stderr."""
    seen = SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("visionllm_edge.runtime.cli.run.sys", seen)


def test_command_shows_steps_on_a_terminal(
    ask: Callable[..., Result], tmp_path: Path, terminal: None
) -> None:
    out = tmp_path / "out.png"
    plain = ["--task", "generate", "--prompt", "a cat", "--size", 16, "--save", out]
    plain += ["--steps", 2, "--scheduler", "ddim"]
    result = ask(*plain)
    assert result.stderr == f"\rgenerate 1/2\rgenerate 2/2\nsaved {out}\n"
    assert result.stdout.startswith("a cat\npicture 16 x 16")
    assert ask(*plain, "--json").stderr == f"saved {out}\n"


def test_command_is_quiet_in_a_script(ask: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    result = ask("--task", "generate", "--prompt", "a cat", "--steps", 2, "--save", out)
    assert result.stderr == f"saved {out}\n"


def test_command_ends_the_line_of_steps_before_an_error(
    ask: Callable[..., Result],
    pictures: ToyPictures,
    tmp_path: Path,
    terminal: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maker = pictures.model._pipeline.maker("generate")

    def make(*_: Any) -> Any:
        yield 1, 3
        raise BackendError("no memory")

    monkeypatch.setattr(maker, "make", make)
    result = ask("--task", "generate", "--prompt", "a cat", "--save", tmp_path / "out.png")
    assert result.exit_code == 1
    assert result.stderr == "\rgenerate 1/3\nError: no memory\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "generate", "--save", "o.png"], "--task generate needs --prompt"),
        (["--task", "generate", "--prompt", "a"], "--task generate needs --save"),
        (["--task", "edit", "--instruction", "a", "--save", "o.png"], "needs --image"),
        (["--task", "generate", "--prompt", "a", "--image-guidance", "2", "--save", "o.png"],
         "--image-guidance does not belong to --task generate"),
        (["--task", "generate", "--prompt", "a", "--size", "10x", "--save", "o.png"],
         "expected SIDE or WIDTHxHEIGHT"),
        (["--task", "generate", "--prompt", "a", "--steps", "0", "--save", "o.png"],
         "--steps': 0 is not in the range"),
    ],
)  # fmt: skip
def test_command_refuses(ask: Callable[..., Result], arguments: list[str], message: str) -> None:
    result = ask(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_command_tells_an_error_in_one_line(ask: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "o.png"
    result = ask("--task", "generate", "--prompt", "a", "--size", "20", "--save", out)
    assert result.exit_code == 1
    assert "size: expected (height, width) in multiples of 8" in result.stderr
    assert not out.exists()
