"""Formats made of texts: that their ids are those of the texts behind a prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from visionllm_edge.runtime import GenerationConfig, VisionLLM
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.pipelines.formats import (
    choices_format,
    class_list_format,
    with_room,
    written_after,
)
from visionllm_edge.runtime.prompts import Text, scripted_answer

CLASSES = ["red circle", "red", "person"]


def text_of(toy: Any, ids: tuple[int, ...]) -> str:
    text: str = toy.tokenizer.decode(ids)
    return text


def test_choices_are_the_texts_behind_the_prompt(toy: Any) -> None:
    form = choices_format(toy.tokenizer, ["yes", " no "], template="vicuna_v1")
    assert [text_of(toy, ids).strip() for ids in form.options] == ["yes", "no"]
    assert form.end == toy.tokenizer.eos
    bare = choices_format(toy.tokenizer, [" a b"], template="vicuna_v1", prompt="x")
    assert toy.tokenizer.encode([Text("x a b")]) == [
        *toy.tokenizer.encode([Text("x")]),
        *bare.options[0],
    ]


def test_an_answer_that_melts_into_the_prompt_is_refused() -> None:
    class Melting:
        """Writes ``ab`` as one token."""

        def encode(self, segments: Any, bos: bool = True) -> list[int]:
            text = "".join(segment.text for segment in segments)
            return [ord(c) for c in text.replace("ab", "#")]

        def control_id(self, name: str) -> int:
            return 0

    tokenizer: Any = Melting()
    with pytest.raises(InputError, match="one token"):
        written_after(tokenizer, (Text("b"),), "plain", "xa")
    assert written_after(tokenizer, (Text("c"),), "plain", "xa") == (ord("c"),)


def test_a_class_list_is_the_scripted_answer_of_some_classes(toy: Any) -> None:
    form = class_list_format(toy.tokenizer, CLASSES, "[DET]", template="vicuna_v1")
    for order in ([0], [2, 0], [1, 0, 2]):
        ids = form.first[order[0]] + tuple(t for i in order[1:] for t in form.later[i])
        names = [CLASSES[i] for i in order]
        whole = written_after(toy.tokenizer, scripted_answer(names), "vicuna_v1", None)
        assert ids + form.closer == whole


def test_the_token_limit_never_cuts_a_format(toy: Any) -> None:
    form = choices_format(toy.tokenizer, ["certainly not"], template="vicuna_v1")
    small = GenerationConfig(max_new_tokens=2)
    assert with_room(small, form).max_new_tokens == len(form.longest)
    assert with_room(small, None) is small
    large = GenerationConfig()
    assert with_room(large, form) is large


@pytest.mark.parametrize("seed", range(5))
def test_a_listed_answer_names_asked_classes_only(toy: Any, photo: Any, seed: int) -> None:
    toy.table *= np.random.default_rng(seed).uniform(0.2, 3, (len(toy.table), 1)).astype(np.float32)
    result = VisionLLM(toy.pipeline).detect(
        photo,
        CLASSES,
        mode="listed",
        threshold=0.0,
        config=GenerationConfig(temperature=4.0, seed=seed, max_new_tokens=4),
    )
    assert result.classes == tuple(CLASSES)
    assert result.text.startswith("Sure, here are results for ") and result.text.endswith("[DET].")
    named = result.text[len("Sure, here are results for ") : -1].split(", ")
    assert {name.removesuffix("[DET]") for name in named} <= set(CLASSES)
    assert len(set(named)) == len(named)
    assert {found.label for found in result.detections} <= set(CLASSES)


def test_listed_equals_scripted_where_the_model_lists_everything(toy: Any, photo: Any) -> None:
    toy.reply("analyze", scripted_answer(CLASSES))
    model = VisionLLM(toy.pipeline)
    scripted = model.detect(photo, CLASSES, threshold=0.0, top_k=8)
    listed = model.detect(photo, CLASSES, mode="listed", threshold=0.0, top_k=8)
    assert listed.text == scripted.text
    for ours, theirs in zip(listed.detections, scripted.detections, strict=True):
        assert ours.label == theirs.label
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)


def test_modes_are_checked(toy: Any, photo: Any) -> None:
    model: Any = VisionLLM(toy.pipeline)
    with pytest.raises(InputError, match="scripted or listed or free, got 'other'"):
        model.detect(photo, ["a"], mode="other")
    with pytest.raises(InputError, match="scripted or free, got 'listed'"):
        model.ground(photo, "a", mode="listed")


def test_many_questions_about_a_picture_compute_it_once(toy: Any, photo: Any) -> None:
    toy.reply("colour", (Text("red"),))
    toy.reply("shape", (Text("round"),))
    model = VisionLLM(toy.pipeline)
    questions = ["which colour?", "which shape?", "which colour again?"]

    answers = model.vqa_many(photo, questions)

    assert [answer.text for answer in answers] == ["red", "round", "red"]
    assert [answer.question for answer in answers] == questions
    assert toy.calls("vision_encoder") == 1
    prompts = [run for run in toy.decoder.log if run[1] > 10]
    assert len(prompts) == 3
    assert [past > 40 for past, _ in prompts] == [False, True, True]
    chosen = model.vqa_many(photo, questions[:2], choices=["red", "blue"])
    assert {answer.text for answer in chosen} <= {"red", "blue"}
    with pytest.raises(InputError, match="question"):
        model.vqa_many(photo, ["a", " "])
