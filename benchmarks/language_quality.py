"""How close one language model is to another: perplexity, divergence, the same words.

A model here is a `LanguageModel`: a bundle in the runtime, or torch. Knows nothing of tokenizers:
texts are ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Agreement",
    "LanguageModel",
    "Logits",
    "Progress",
    "Replay",
    "Scored",
    "TextScore",
    "compare_answers",
    "keep_logits",
    "score_text",
    "windows",
]

Logits = NDArray[np.float32]
Progress = Callable[[int, int], None]

# Rows of logits in memory at a time: 256 x 50 000 words are 51 MB.
_ROWS = 256


class Scored(Protocol):
    """What can read a text."""

    def logits(self, tokens: Sequence[int], rows: int) -> Iterator[Logits]:
        """Logits ``[n, V]`` behind every position of a new context, at most ``rows`` at a time."""


class LanguageModel(Scored, Protocol):
    """What can be judged."""

    def answer(self, prompt: Sequence[int], count: int, stop: frozenset[int]) -> list[int]:
        """Greedy continuation: at most ``count`` ids, up to the first in ``stop``, without it."""


class Replay:
    """Scores what `keep_logits` kept: the reference against itself, without running it again."""

    def __init__(self, kept: Logits) -> None:
        """Start with the first text."""
        self._kept = kept
        self._at = 0

    def logits(self, tokens: Sequence[int], rows: int) -> Iterator[Logits]:
        """The next text's; see `LanguageModel`."""
        end = self._at + len(tokens)
        for start in range(self._at, end, rows):
            yield np.array(self._kept[start : min(start + rows, end)])
        self._at = end


@dataclass(frozen=True)
class TextScore:
    """What a text is to a model.

    Attributes:
        perplexity: of every token but the first of each window.
        tokens: how many were scored.
        divergence: mean KL divergence from the reference's distribution, in nats per token.
        same_choice: share of positions where the most likely token is the reference's.
    """

    perplexity: float
    tokens: int
    divergence: float
    same_choice: float

    def to_dict(self) -> dict[str, float | int]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Agreement:
    """Greedy answers against the reference's.

    Attributes:
        prompts: how many.
        same_answers: share of answers that are the same to the last token.
        same_tokens: mean share of the reference's answer before the first difference.
    """

    prompts: int
    same_answers: float
    same_tokens: float

    def to_dict(self) -> dict[str, float | int]:
        """Plain JSON types."""
        return asdict(self)


def windows(tokens: Sequence[int], length: int) -> list[list[int]]:
    """Cut a text into contexts of their own; a last one of a single token is dropped."""
    out = [list(tokens[i : i + length]) for i in range(0, len(tokens), length)]
    return [window for window in out if len(window) > 1]


def keep_logits(
    model: Scored, texts: Sequence[Sequence[int]], kept: Logits, progress: Progress
) -> None:
    """Fill ``kept`` ``[positions of all texts, V]`` with the reference's logits."""
    at = 0
    for i, text in enumerate(texts):
        for logits in model.logits(text, _ROWS):
            kept[at : at + len(logits)] = logits
            at += len(logits)
        progress(i + 1, len(texts))
    assert at == len(kept), "one row for each position"


def score_text(
    model: Scored, texts: Sequence[Sequence[int]], reference: Logits, progress: Progress
) -> TextScore:
    """Score every text, each in a context of its own.

    Args:
        model: whose perplexity it is.
        texts: ids, at least two each.
        reference: what `keep_logits` wrote for the same texts; a memory map will do.
        progress: gets (texts done, all).
    """
    surprise, divergence, same, count, at = 0.0, 0.0, 0, 0, 0
    for i, text in enumerate(texts):
        row = 0
        for logits in model.logits(text, _ROWS):
            theirs = np.asarray(reference[at : at + len(logits)])
            mine_log, their_log = _log_softmax(logits), _log_softmax(theirs)
            divergence += float((np.exp(their_log) * (their_log - mine_log)).sum(dtype=np.float64))
            same += int((logits.argmax(axis=1) == theirs.argmax(axis=1)).sum())
            # The last row of a text predicts a token that is not there.
            following = np.array(text[row + 1 : row + 1 + len(logits)], dtype=np.int64)
            surprise -= float(mine_log[np.arange(len(following)), following].sum(dtype=np.float64))
            count += len(following)
            at += len(logits)
            row += len(logits)
        progress(i + 1, len(texts))
    return TextScore(math.exp(surprise / count), count, divergence / at, same / at)


def compare_answers(answers: Sequence[Sequence[int]], truth: Sequence[Sequence[int]]) -> Agreement:
    """Compare greedy answers token by token."""
    shares = []
    for mine, theirs in zip(answers, truth, strict=True):
        common = 0
        while common < min(len(mine), len(theirs)) and mine[common] == theirs[common]:
            common += 1
        shares.append(common / len(theirs) if theirs else float(not mine))
    same = sum(list(a) == list(b) for a, b in zip(answers, truth, strict=True))
    return Agreement(len(truth), same / len(truth), sum(shares) / len(truth))


def _log_softmax(logits: Logits) -> Logits:
    shifted: Logits = logits - logits.max(axis=1, keepdims=True)
    out: Logits = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return out
