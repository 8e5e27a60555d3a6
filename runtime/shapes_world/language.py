"""What is said about a scene: its caption, questions with answers, class names, expressions.

The texts carry no instruction to the model and no control token; the prompt builder adds those.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.shapes_world.names import COLORS, SHAPES
from visionllm_edge.runtime.shapes_world.scene import Item, Scene

__all__ = [
    "Question",
    "caption",
    "class_names",
    "expressions",
    "indefinite",
    "matches",
    "plural",
    "questions",
]

_QUESTION_KINDS: tuple[Literal["count", "color", "yesno"], ...] = ("count", "color", "yesno")
_HARD_NEGATIVES = 0.8
_PRESENT_COUNTS = 0.75
_TRIES_FOR_A_NEW_TEXT = 8


@dataclass(frozen=True)
class Question:
    """A question about a scene and its one right answer.

    Attributes:
        kind: ``count`` (answer "0".."5"), ``color`` (a colour's name) or ``yesno``.
        text: The question, with its question mark.
        answer: The answer, lower case, no full stop.
    """

    kind: Literal["count", "color", "yesno"]
    text: str
    answer: str


def plural(shape: str) -> str:
    """The shape's name for several of them: ``circles``, ``persons``."""
    return f"{shape}s"


def indefinite(name: str) -> str:
    """The name with its article: ``a red circle``, ``an orange star``."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def caption(scene: Scene) -> str:
    """Name every item from left to right: ``a red circle, a blue person and a green star.``."""
    names = [indefinite(item.name) for item in scene.items]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{listed}."


def matches(name: str, item: Item) -> bool:
    """Whether a class name, ``circle`` or ``red circle``, names this item."""
    return name in (item.shape, item.name)


def expressions(scene: Scene) -> list[tuple[str, int]]:
    """Referring expressions: each name that fits one item only, with that item's index."""
    count = Counter(item.name for item in scene.items)
    return [(item.name, i) for i, item in enumerate(scene.items) if count[item.name] == 1]


def questions(scene: Scene, rng: np.random.Generator, n: int) -> list[Question]:
    """Ask ``n`` questions, of each kind equally often where the scene allows it.

    Questions differ from each other as far as that is possible. A colour is asked only for a shape
    that one item has; yes and no are equally likely, and most "no" questions have the right shape
    in a wrong colour or the right colour on a wrong shape.
    """
    asked: list[Question] = []
    texts: set[str] = set()
    for _ in range(n):
        for _ in range(_TRIES_FOR_A_NEW_TEXT):
            question = _ask(scene, rng)
            if question.text not in texts:
                break
        asked.append(question)
        texts.add(question.text)
    return asked


def _ask(scene: Scene, rng: np.random.Generator) -> Question:
    count = Counter(item.shape for item in scene.items)
    kind = _QUESTION_KINDS[int(rng.integers(len(_QUESTION_KINDS)))]
    single = [item for item in scene.items if count[item.shape] == 1]
    if kind == "color" and single:
        item = single[int(rng.integers(len(single)))]
        return Question("color", f"What color is the {item.shape}?", item.color)
    if kind == "count":
        shapes = sorted(count) if rng.random() < _PRESENT_COUNTS else list(SHAPES)
        shape = shapes[int(rng.integers(len(shapes)))]
        return Question("count", f"How many {plural(shape)} are there?", str(count[shape]))
    positive, hard, easy = _phrases(scene)
    if rng.random() < 0.5:
        pool, answer = positive, "yes"
    else:
        pool, answer = (hard if rng.random() < _HARD_NEGATIVES or not easy else easy), "no"
    name = pool[int(rng.integers(len(pool)))]
    return Question("yesno", f"Is there {indefinite(name)}?", answer)


def _phrases(scene: Scene) -> tuple[list[str], list[str], list[str]]:
    """All 36 'colour shape' names: those in the scene, the near misses, the rest."""
    present = {item.name for item in scene.items}
    shapes = {item.shape for item in scene.items}
    colors = {item.color for item in scene.items}
    positive: list[str] = []
    hard: list[str] = []
    easy: list[str] = []
    for color in COLORS:
        for shape in SHAPES:
            name = f"{color} {shape}"
            if name in present:
                positive.append(name)
            elif shape in shapes or color in colors:
                hard.append(name)
            else:
                easy.append(name)
    return positive, hard, easy


def class_names(
    scene: Scene,
    rng: np.random.Generator,
    n: int,
    *,
    kind: Literal["shape", "phrase", "mixed"] = "shape",
) -> list[str]:
    """Pick ``n`` different class names to look for, in random order.

    At least one of them is in the scene, and for ``n >= 2`` at least one is not, as far as the
    vocabulary allows. Negative phrases are mostly near misses.

    Args:
        scene: The scene to look at.
        rng: Source of everything random.
        n: How many names; at most 6 shapes, 36 phrases, 42 mixed.
        kind: ``shape`` (``circle``), ``phrase`` (``red circle``) or a mix of both.

    Raises:
        InputError: More names asked than there are.
    """
    present = {item.shape for item in scene.items}
    positive: list[str] = []
    hard: list[str] = []
    easy: list[str] = []
    if kind in ("phrase", "mixed"):
        positive, hard, easy = _phrases(scene)
    if kind in ("shape", "mixed"):
        positive = [shape for shape in SHAPES if shape in present] + positive
        hard = [shape for shape in SHAPES if shape not in present] + hard
    total = len(positive) + len(hard) + len(easy)
    if not 1 <= n <= total:
        raise InputError(f"class names of kind {kind!r}: expected 1 to {total} names, got {n}.")
    negatives = len(hard) + len(easy)
    most = min(len(positive), max(1, n - 1) if negatives else n)
    least = max(1, n - negatives)
    n_positive = int(rng.integers(min(least, most), most + 1)) if least <= most else least
    chosen = _pick(rng, positive, n_positive)
    n_negative = n - len(chosen)
    n_hard = min(len(hard), int(rng.binomial(n_negative, _HARD_NEGATIVES)))
    n_hard = max(n_hard, n_negative - len(easy))
    chosen += _pick(rng, hard, n_hard) + _pick(rng, easy, n_negative - n_hard)
    return [chosen[i] for i in rng.permutation(n)]


def _pick(rng: np.random.Generator, names: list[str], n: int) -> list[str]:
    return [names[i] for i in rng.permutation(len(names))[:n]]
