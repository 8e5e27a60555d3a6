from __future__ import annotations

from typing import Any

import pytest

from visionllm_edge.runtime.pipelines.labels import asked_for, group_label
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
    ("text", "first", "label"),
    [
        (". Here are the keypoints nose", True, "nose"),
        ("Sure, here are the keypoints left eye", True, "left eye"),
        (", left eye", False, "left eye"),
        ("Sure, nose", True, "nose"),
    ],
)
def test_label_of_a_keypoint(toy: Any, text: str, first: bool, label: str) -> None:
    ids = toy.tokenizer.encode([Text(text)], bos=False)
    assert group_label(toy.tokenizer, ids, first=first, routing="[POSE]") == label


@pytest.mark.parametrize(
    ("routing", "question", "asked"),
    [
        ("[GRD]", "Where can we locate the red hat in the image?", "red hat"),
        ("[GRD]", "Please find the old dog.", "old dog"),
        ("[GRD]", "Who is it?", "Who is it?"),
        ("[GEN]", "Generate image with caption: a red circle.", "a red circle"),
        ("[GEN]", "Paint me a cat.", "Paint me a cat"),
        ("[EDIT]", "Please edit the image: make it blue.", "make it blue"),
        ("[EDIT]", "make the red circle blue.", "make the red circle blue"),
        ("[DET]", "Where are the dogs?", None),
        ("[POSE]", "Please find the nose of each dog.", None),
    ],
)
def test_asked_for(routing: str, question: str, asked: str | None) -> None:
    assert asked_for(routing, question) == asked
