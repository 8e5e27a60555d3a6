from __future__ import annotations

from typing import Any

import pytest

from visionllm_edge.runtime.pipelines.labels import asked_expression, group_label
from visionllm_edge.runtime.prompts import Control, Text


@pytest.mark.parametrize(
    ("text", "first", "label"),
    [
        ("Sure, here are results for red circle", True, "red circle"),
        ("Of course. Results for bag for life", True, "bag for life"),
        ("Here you go for person", True, "person"),
        ("Sure, person", True, "person"),
        ("person", True, "person"),
        (", bag for life", False, "bag for life"),
        (" and a dog", False, "a dog"),
        (", and dog", False, "dog"),
        (". Android", False, "Android"),
        ("", False, ""),
        ("Sure,", True, "Sure"),
    ],
)
def test_label_of_a_group(toy: Any, text: str, first: bool, label: str) -> None:
    ids = toy.tokenizer.encode([Text(text)], bos=False)
    assert group_label(toy.tokenizer, ids, first=first) == label


def test_the_last_tagged_phrase_wins(toy: Any) -> None:
    segments = [
        Text("One"), Control("<det>"), Text("cat, old"), Control("</det>"), Text("for "),
        Control("<det>"), Text("dog, young"), Control("</det>"), Text(" x"),
    ]  # fmt: skip
    ids = toy.tokenizer.encode(segments, bos=False)
    assert group_label(toy.tokenizer, ids, first=True) == "dog, young"


@pytest.mark.parametrize(
    ("question", "expression"),
    [
        ("Where can we locate the red hat in the image?", "red hat"),
        ("Please find the old dog.", "old dog"),
        ("Who is it?", "Who is it?"),
    ],
)
def test_asked_expression(question: str, expression: str) -> None:
    assert asked_expression(question) == expression
