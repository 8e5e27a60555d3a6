from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from visionllm_edge.runtime.pipelines.phrases import plain_answer
from visionllm_edge.runtime.prompts import Control, Segment, Text
from visionllm_edge.runtime.task_prompts import Phrase, grounded_caption_answer

DET = Control("[DET]")


def said(
    toy: Any, segments: Sequence[Segment], labels: Sequence[str]
) -> tuple[str, list[tuple[str, int, int, int]]]:
    ids = toy.tokenizer.encode(segments, bos=False)
    routing = frozenset(toy.tokenizer.control_id(name) for name in ("[DET]", "[GRD]", "[POSE]"))
    words, phrases = plain_answer(toy.tokenizer, ids, labels, routing)
    for phrase in phrases:
        assert words[phrase.start : phrase.end] == phrase.text
    return words, [(p.text, p.start, p.end, p.group) for p in phrases]


def test_a_grounded_caption_as_plain_words(toy: Any) -> None:
    answer = grounded_caption_answer(
        [Phrase("a red circle"), ", ", Phrase("a blue person"), " and ", Phrase("a star"), "."]
    )
    words, phrases = said(toy, answer, ["a red circle", "a blue person", "a star"])
    assert words == "a red circle, a blue person and a star."
    assert phrases == [
        ("a red circle", 0, 12, 0),
        ("a blue person", 14, 27, 1),
        ("a star", 32, 38, 2),
    ]


def test_the_same_phrase_twice_has_two_places(toy: Any) -> None:
    answer = grounded_caption_answer(["Here: ", Phrase("a cat"), " and ", Phrase("a cat"), "."])
    words, phrases = said(toy, answer, ["a cat", "a cat"])
    assert words == "Here: a cat and a cat."
    assert [p[1:3] for p in phrases] == [(6, 11), (16, 21)]


def test_labels_without_tags_are_found_in_the_words(toy: Any) -> None:
    answer = (Text("Sure, results for cat"), DET, Text(", dog"), DET, Text(", cat"), DET, Text("."))
    words, phrases = said(toy, answer, ["cat", "dog", "cat"])
    assert words == "Sure, results for cat, dog, cat."
    assert phrases == [("cat", 18, 21, 0), ("dog", 23, 26, 1), ("cat", 28, 31, 2)]


def test_groups_that_the_words_do_not_name_have_no_phrase(toy: Any) -> None:
    answer = (Text("Sure, "), Control("[GRD]"), Text(" and a hat"), DET)
    words, phrases = said(toy, answer, ["the tall man", "a hat"])
    assert words == "Sure, and a hat"
    assert phrases == [("a hat", 10, 15, 1)]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["(", Phrase("a fox"), ") sleeps"], "(a fox) sleeps"),
        ([Phrase("One"), Phrase("two")], "One two"),
        (["It's ", Phrase("x"), "'s"], "It's x's"),
        ([Phrase("a"), "! ", Phrase("b"), "?"], "a! b?"),
    ],
)
def test_blanks_come_back_between_words_only(
    toy: Any, pieces: list[str | Phrase], words: str
) -> None:
    labels = [piece.text for piece in pieces if isinstance(piece, Phrase)]
    assert said(toy, grounded_caption_answer(pieces), labels)[0] == words


def test_tags_that_do_not_fit_together(toy: Any) -> None:
    open_, close = Control("<det>"), Control("</det>")
    # A phrase that is never closed, one without a group, an end without a beginning.
    answer = (open_, Text("a fox"), DET, open_, Text("a hen"), close, Text("runs"), close, DET)
    words, phrases = said(toy, answer, ["a fox", "runs"])
    assert words == "a fox a hen runs"
    assert phrases == [("a fox", 0, 5, 0), ("a hen", 6, 11, 1)]
    empty = (open_, close, DET, Text("x"))
    assert said(toy, empty, [""]) == ("x", [])


def test_no_words_at_all(toy: Any) -> None:
    assert said(toy, (), []) == ("", [])
    assert said(toy, (DET,), [""]) == ("", [])
