"""Scores that rounding cannot reorder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from visionllm_edge.export.stages.clear_order import rows_in_clear_order


def steps(scores: Tensor, usable: Tensor, count: int) -> Tensor:
    """Between the best `count`; unusable places share a score and may stand in any order."""
    top, index = scores.topk(count)
    ok = usable[index]
    return (top[:-1] - top[1:])[ok[:-1] | ok[1:]]


def scored(unusable: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    scores, usable = torch.randn(3000), torch.ones(3000, dtype=torch.bool)
    usable[torch.randperm(3000)[:unusable]] = False
    scores[~usable] = 1.5
    return scores, usable


@pytest.mark.parametrize("unusable", [0, 30, 300])
def test_the_best_are_a_step_apart(unusable: int) -> None:
    scores, usable = scored(unusable)
    assert float(steps(scores, usable, 200).min()) < 1e-4
    rows = rows_in_clear_order(scores, usable, 200, step=1e-3)
    assert float(steps(scores[rows], usable, 200).min()) >= 1e-3
    changed = rows != torch.arange(3000)
    assert 0 < int(changed.sum()) < 100
    assert not changed[~usable].any()
    worst = scores.masked_fill(~usable, float("inf")).argmin()
    assert torch.equal(rows[changed], worst.expand(int(changed.sum())))


def test_a_step_that_leaves_too_few_is_halved() -> None:
    scores, usable = scored(0)
    rows = rows_in_clear_order(scores, usable, 200, step=1.0)
    smallest = float(steps(scores[rows], usable, 200).min())
    assert 1 / 512 <= smallest < 1 / 32  # the best 200 spread over 2 to 3 units


def test_a_clear_order_stays() -> None:
    scores = torch.linspace(1, 0, 50)
    rows = rows_in_clear_order(scores, torch.ones(50, dtype=torch.bool), 10, step=1e-3)
    assert rows.tolist() == list(range(50))


def test_too_few_places_stay_as_they_are() -> None:
    scores = torch.tensor([0.3, 0.3, 0.2])
    rows = rows_in_clear_order(scores, torch.tensor([False, False, True]), 3, step=1e-3)
    assert rows.tolist() == [0, 1, 2]


def test_equal_scores_cannot_be_ordered() -> None:
    rows = rows_in_clear_order(torch.ones(50), torch.ones(50, dtype=torch.bool), 10, step=1e-3)
    assert rows.tolist() == list(range(50))
