"""Texts about a scene: each is checked against the scene itself."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from visionllm_edge.runtime import shapes_world
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.shapes_world import Item, Scene

BLANK = np.zeros((8, 8, 3), dtype=np.uint8)


def scene_of(*names: str) -> Scene:
    """A scene of named items; nothing here looks at pixels."""
    mask = np.zeros((8, 8), dtype=bool)
    items = []
    for name in names:
        color, shape = name.split()
        items.append(Item(shape, color, (0.0, 0.0, 1.0, 1.0), mask, None))
    return Scene(BLANK, tuple(items))


def made(n: int) -> list[Scene]:
    rng = np.random.default_rng(11)
    return [shapes_world.make_scene(rng) for _ in range(n)]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["red circle"], "a red circle."),
        (["orange square", "blue person"], "an orange square and a blue person."),
        (
            ["red circle", "blue person", "green star"],
            "a red circle, a blue person and a green star.",
        ),
    ],
)
def test_caption_wording(names: list[str], text: str) -> None:
    assert shapes_world.caption(scene_of(*names)) == text


def test_captions_go_from_left_to_right() -> None:
    for scene in made(40):
        lefts = [(item.box_xyxy[0] + item.box_xyxy[2], item.name) for item in scene.items]
        said = re.findall(r"an? (\w+ \w+)", shapes_world.caption(scene))
        assert said == [name for _, name in sorted(lefts)]


def test_every_answer_is_true() -> None:
    rng = np.random.default_rng(2)
    kinds: Counter[str] = Counter()
    for scene in made(150):
        for question in shapes_world.questions(scene, rng, 4):
            kinds[question.kind] += 1
            assert question.answer == answer_by_reading(question.text, scene)
    assert min(kinds.values()) > 100


def answer_by_reading(text: str, scene: Scene) -> str:
    if match := re.fullmatch(r"How many (\w+)s are there\?", text):
        return str(sum(item.shape == match[1] for item in scene.items))
    if match := re.fullmatch(r"What color is the (\w+)\?", text):
        (only,) = [item for item in scene.items if item.shape == match[1]]
        return only.color
    match = re.fullmatch(r"Is there an? (\w+ \w+)\?", text)
    assert match is not None, text
    return "yes" if any(item.name == match[1] for item in scene.items) else "no"


def test_yes_and_no_are_balanced_and_most_no_are_near_misses() -> None:
    rng = np.random.default_rng(4)
    answers: Counter[str] = Counter()
    near = 0
    for scene in made(300):
        for question in shapes_world.questions(scene, rng, 4):
            if question.kind != "yesno":
                continue
            answers[question.answer] += 1
            if question.answer == "no":
                color, shape = re.findall(r"an? (\w+) (\w+)\?", question.text)[0]
                near += any(color == i.color or shape == i.shape for i in scene.items)
    share = answers["yes"] / answers.total()
    assert 0.42 < share < 0.58
    assert near / answers["no"] > 0.7


def test_articles_and_plurals() -> None:
    assert shapes_world.indefinite("orange star") == "an orange star"
    assert shapes_world.indefinite("red star") == "a red star"
    assert shapes_world.plural("person") == "persons"


def test_questions_are_deterministic() -> None:
    scene = made(1)[0]
    one, same = (shapes_world.questions(scene, np.random.default_rng(5), 6) for _ in range(2))
    assert one == same


@pytest.mark.parametrize("kind", ["shape", "phrase", "mixed"])
@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_class_names_are_distinct_with_hits_and_misses(kind: str, n: int) -> None:
    rng = np.random.default_rng(9)
    for scene in made(40):
        names = shapes_world.class_names(scene, rng, n, kind=kind)  # type: ignore[arg-type]
        assert len(set(names)) == len(names) == n
        hits = [any(shapes_world.matches(name, item) for item in scene.items) for name in names]
        assert any(hits)
        if n >= 2:
            assert not all(hits)
        words = {len(name.split()) for name in names}
        assert words <= {"shape": {1}, "phrase": {2}, "mixed": {1, 2}}[kind]


def test_all_shapes_can_be_asked_for_at_once() -> None:
    names = shapes_world.class_names(made(1)[0], np.random.default_rng(0), 6)
    assert sorted(names) == sorted(shapes_world.SHAPES)


def test_more_names_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="1 to 6 names, got 7"):
        shapes_world.class_names(made(1)[0], np.random.default_rng(0), 7)


def test_matches_takes_a_shape_or_a_colored_shape() -> None:
    (item,) = scene_of("red circle").items
    assert shapes_world.matches("circle", item)
    assert shapes_world.matches("red circle", item)
    assert not shapes_world.matches("blue circle", item)
    assert not shapes_world.matches("red", item)


def test_expressions_name_exactly_one_item() -> None:
    scene = scene_of("red circle", "blue star", "red circle", "red star")
    assert shapes_world.expressions(scene) == [("blue star", 1), ("red star", 3)]
