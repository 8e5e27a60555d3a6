"""Numbers for words: captions and short answers, compared with what is true of the scene."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from visionllm_edge.runtime.shapes_world import COLORS, SHAPES, Question

__all__ = ["AnswerAccuracy", "CaptionScores", "answer_accuracy", "caption_scores"]

_OBJECT = re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b")


@dataclass(frozen=True)
class CaptionScores:
    """How captions compare with the true ones.

    Attributes:
        exact_match: Part of the captions that is right word for word, order included.
        object_jaccard: Mean Jaccard index of the two sets of 'colour shape' names.
    """

    exact_match: float
    object_jaccard: float


@dataclass(frozen=True)
class AnswerAccuracy:
    """Part of the short answers that is right.

    Attributes:
        overall: Over all questions.
        by_kind: Per kind of question.
        asked: How many questions of each kind.
    """

    overall: float
    by_kind: dict[str, float]
    asked: dict[str, int]


def caption_scores(pairs: Sequence[tuple[str, str]]) -> CaptionScores:
    """Compare captions; each pair is (said, true)."""
    exact = sum(_plain(said) == _plain(true) for said, true in pairs)
    jaccard = sum(_jaccard(_objects(said), _objects(true)) for said, true in pairs)
    return CaptionScores(exact / len(pairs), jaccard / len(pairs))


def answer_accuracy(pairs: Sequence[tuple[str, Question]]) -> AnswerAccuracy:
    """Compare short answers; each pair is (said, question). A final full stop does not matter."""
    right: dict[str, list[bool]] = {}
    for said, question in pairs:
        right.setdefault(question.kind, []).append(_plain(said) == question.answer)
    everything = [one for ones in right.values() for one in ones]
    return AnswerAccuracy(
        overall=sum(everything) / len(everything),
        by_kind={kind: sum(ones) / len(ones) for kind, ones in sorted(right.items())},
        asked={kind: len(ones) for kind, ones in sorted(right.items())},
    )


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def _objects(text: str) -> set[str]:
    return {f"{color} {shape}" for color, shape in _OBJECT.findall(text.lower())}


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other) if one or other else 1.0
