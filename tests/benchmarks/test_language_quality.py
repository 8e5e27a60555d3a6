"""Perplexity, divergence and agreement, on models whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from visionllm_edge.benchmarks.language_quality import (
    Replay,
    compare_answers,
    keep_logits,
    score_text,
    windows,
)

VOCABULARY = 7
TEXTS = [[1, 2, 3, 4, 5], [6, 0, 2]]


class Fixed:
    """Always the same distribution, in parts of two rows whatever is asked for."""

    def __init__(self, logits_V: Sequence[float]) -> None:  # noqa: N803 (axis letters)
        self._row = np.array(logits_V, dtype=np.float32)

    def logits(self, tokens: Sequence[int], rows: int) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(tokens), 2):
            yield np.tile(self._row, (len(tokens[start : start + 2]), 1))


def kept_of(model: Fixed) -> NDArray[np.float32]:
    kept = np.zeros((8, VOCABULARY), dtype=np.float32)
    keep_logits(model, TEXTS, kept, lambda done, total: None)
    return kept


def test_a_guesser_is_as_perplexed_as_there_are_words() -> None:
    model = Fixed([4.0] * VOCABULARY)
    told: list[tuple[int, int]] = []
    score = score_text(model, TEXTS, kept_of(model), lambda *now: told.append(now))
    assert score.perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert score.tokens == 6  # all but the first of each text
    assert score.divergence == pytest.approx(0, abs=1e-7)
    assert score.same_choice == 1
    assert told == [(1, 2), (2, 2)]


def test_perplexity_is_that_of_the_tokens_that_follow() -> None:
    logits = [0.0, 0.5, -1.0, 2.0, 1.0, 0.0, 3.0]
    log_p = np.array(logits) - np.log(np.exp(logits).sum())
    following = [2, 3, 4, 5, 0, 2]
    model = Fixed(logits)
    score = score_text(model, TEXTS, kept_of(model), lambda done, total: None)
    assert score.perplexity == pytest.approx(math.exp(-log_p[following].mean()), rel=1e-6)


def test_divergence_is_from_the_reference_to_the_model() -> None:
    reference, mine = [0.0] * VOCABULARY, [3.0, *([0.0] * (VOCABULARY - 1))]
    p = np.full(VOCABULARY, 1 / VOCABULARY)
    q = np.exp(mine) / np.exp(mine).sum()
    kept = kept_of(Fixed(reference))
    kept[:, 2] += 1e-3  # the reference's choice, which the model never makes
    score = score_text(Fixed(mine), TEXTS, kept, lambda done, total: None)
    assert score.divergence == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-2)
    assert score.same_choice == 0


def test_the_reference_is_scored_without_running_it_again() -> None:
    model = Fixed([0.0, 0.5, -1.0, 2.0, 1.0, 0.0, 3.0])
    kept = kept_of(model)
    direct, replayed = (
        score_text(one, TEXTS, kept, lambda done, total: None) for one in (model, Replay(kept))
    )
    assert replayed.perplexity == pytest.approx(direct.perplexity, rel=1e-6)
    assert replayed.tokens == direct.tokens and replayed.divergence == 0


def test_answers_are_compared_up_to_the_first_difference() -> None:
    truth = [[1, 2, 3, 4], [5, 6], [7]]
    mine = [[1, 2, 9, 4], [5, 6], [7, 8]]
    agreement = compare_answers(mine, truth)
    assert agreement.same_answers == pytest.approx(1 / 3)
    assert agreement.same_tokens == pytest.approx((0.5 + 1 + 1) / 3)
    assert compare_answers([[], [1]], [[], []]).same_tokens == 0.5


def test_windows_cover_the_text_and_leave_no_single_token() -> None:
    assert windows([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4]]
    assert windows([1, 2, 3, 4, 5], 3) == [[1, 2, 3], [4, 5]]
