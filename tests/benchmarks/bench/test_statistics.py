"""Percentiles with as many samples as they need, and an interval that holds the median."""

from __future__ import annotations

import math

import numpy as np
import pytest

from visionllm_edge.benchmarks.bench.statistics import needed_samples, summarize


@pytest.mark.parametrize(("percent", "needed"), [(50, 6), (90, 29), (95, 59), (99, 299)])
def test_samples_that_a_percentile_needs(percent: float, needed: int) -> None:
    assert needed_samples(percent) == needed
    if percent != 50:
        # So many samples: one of them lies above the percentile with 95 % certainty.
        assert 1 - (percent / 100) ** needed >= 0.95 > 1 - (percent / 100) ** (needed - 1)


@pytest.mark.parametrize("percent", [0, 100, -1])
def test_percentiles_that_do_not_exist(percent: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        needed_samples(percent)


def test_percentiles_appear_with_enough_samples() -> None:
    few, enough = summarize([1.0] * 28), summarize([1.0] * 299)
    assert few.p90 is few.p95 is few.p99 is None
    assert (enough.p90, enough.p95, enough.p99) == (1.0, 1.0, 1.0)


def test_what_the_numbers_are() -> None:
    stats = summarize([4.0, 1.0, 3.0, 2.0])
    assert (stats.p50, stats.mean, stats.smallest, stats.largest) == (2.5, 2.5, 1.0, 4.0)
    assert stats.cv == pytest.approx(math.sqrt(1.25) / 2.5)
    assert (stats.low, stats.high) == (1.0, 4.0)  # too few for an interval inside
    with pytest.raises(ValueError, match="at least one"):
        summarize([])


@pytest.mark.parametrize("count", [8, 25, 120])
def test_the_interval_holds_the_true_median(count: int) -> None:
    rng = np.random.default_rng(count)
    hits = 0
    for _ in range(400):
        stats = summarize(rng.lognormal(0.0, 0.4, count).tolist())
        hits += stats.low <= 1.0 <= stats.high
    # At least 95 % by construction; the limit leaves room for the draw of 400.
    assert hits >= 0.925 * 400


def test_more_samples_make_the_interval_narrower() -> None:
    rng = np.random.default_rng(1)
    widths = [summarize(rng.lognormal(0, 0.2, n).tolist()).half_width for n in (10, 100, 1000)]
    assert widths[0] > widths[1] > widths[2]
