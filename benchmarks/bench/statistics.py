"""What a list of times says, and how much of that is certain.

Every limit here is free of assumptions about the distribution: it counts on which side of the true
percentile the samples fall. A percentile is given only with as many samples as its own upper limit
needs: 29 for the 90th, 59 for the 95th, 299 for the 99th.

Source: order statistics, for example H. A. David, "Order Statistics", section 7.1.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from visionllm_edge.benchmarks.latency import percentile

__all__ = ["CONFIDENCE", "PERCENTILES", "Stats", "needed_samples", "summarize"]

CONFIDENCE = 0.95
"""Of every interval."""

PERCENTILES = (90, 95, 99)


@dataclass(frozen=True)
class Stats:
    """What the samples say; times in ms.

    Attributes:
        count: number of samples.
        mean: their mean.
        cv: their standard deviation over their mean; 0 for one sample.
        p50: the median.
        low: lower end of the median's interval of 95 % confidence; the smallest sample where there
            are too few for one.
        high: its upper end, alike.
        p90: None where there are too few samples for it; the other percentiles alike.
        p95: see `p90`.
        p99: see `p90`.
        smallest: the fastest sample.
        largest: the slowest sample.
    """

    count: int
    mean: float
    cv: float
    p50: float
    low: float
    high: float
    smallest: float
    largest: float
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None

    @property
    def half_width(self) -> float:
        """Half of the median's interval over the median: 0.02 is plus or minus 2 %."""
        return (self.high - self.low) / 2 / self.p50 if self.p50 > 0 else math.inf


def needed_samples(percent: float) -> int:
    """How many samples a percentile needs, so that one of them lies above it with 95 % certainty.

    Args:
        percent: above 0 and below 100. The median counts from both sides and needs 6.

    Raises:
        ValueError: outside that range.
    """
    if not 0 < percent < 100:
        raise ValueError(f"percentile: expected a number between 0 and 100, got {percent}")
    if percent == 50:
        return math.ceil(math.log2(2 / (1 - CONFIDENCE)))
    share = max(percent, 100 - percent) / 100
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(share))


def summarize(samples: Sequence[float]) -> Stats:
    """What samples in ms say.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("expected at least one sample")
    ordered = sorted(samples)
    mean = statistics.fmean(ordered)
    low, high = _median_interval(ordered)
    shares = {
        f"p{percent}": percentile(ordered, percent)
        for percent in PERCENTILES
        if len(ordered) >= needed_samples(percent)
    }
    return Stats(
        count=len(ordered),
        mean=mean,
        cv=statistics.pstdev(ordered) / mean if mean > 0 else 0.0,
        p50=statistics.median(ordered),
        low=low,
        high=high,
        smallest=ordered[0],
        largest=ordered[-1],
        **shares,
    )


def _median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """Two samples between which the true median lies with at least 95 % certainty."""
    n = len(ordered)
    tail = 0.0
    rank = 0
    # The largest rank whose lower tail, P(fewer than rank of n fair coins), stays within 2.5 %.
    for k in range(n // 2):
        tail += math.exp(
            math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
        )
        if tail > (1 - CONFIDENCE) / 2:
            break
        rank = k + 1
    if rank == 0:
        return ordered[0], ordered[-1]
    return ordered[rank - 1], ordered[n - rank]
