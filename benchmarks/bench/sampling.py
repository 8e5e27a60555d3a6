"""Takes samples of one task until the median is known well enough.

Warm-up first, at the same shapes. Then samples until the median's 95 % interval is narrow enough
and every percentile that was asked for has the samples it needs, or until the time is up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from visionllm_edge.benchmarks.bench.measurement import Sample, Span
from visionllm_edge.benchmarks.bench.statistics import Stats, needed_samples, summarize
from visionllm_edge.runtime.errors import MeasurementError

__all__ = ["Budget", "Timed", "require_percentiles", "sample_until"]

_LEAST_SAMPLES = 6
# The interval is looked at after this many more samples, each time.
_BATCH = 4


@dataclass(frozen=True)
class Budget:
    """When to stop.

    Attributes:
        interval: half of the median's interval over the median, at most.
        limit_s: wall time of one task.
        warmup: requests before, not measured.
        percentiles: that the result shall have.
    """

    interval: float = 0.02
    limit_s: float = 20.0
    warmup: int = 3
    percentiles: tuple[float, ...] = (50, 90)

    @property
    def least(self) -> int:
        """Samples that are taken in any case, unless the time is up."""
        return max(_LEAST_SAMPLES, *(needed_samples(p) for p in self.percentiles))


@dataclass(frozen=True)
class Timed:
    """One request: its spans, and when its events came (ms since its begin)."""

    total_ms: float
    spans: tuple[Span, ...]
    first_ms: float | None = None
    tokens_ms: tuple[float, ...] = ()

    def sample(self) -> Sample:
        """What the result keeps of it."""
        return Sample(self.total_ms, self.spans)


def sample_until(
    request: Callable[[], Timed],
    budget: Budget,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[Timed], str]:
    """The samples, and what stopped them: ``interval`` or ``limit``."""
    for _ in range(budget.warmup):
        request()
    end = clock() + budget.limit_s
    samples: list[Timed] = []
    while True:
        samples.append(request())
        count = len(samples)
        if count >= budget.least and (count - budget.least) % _BATCH == 0:
            stats = summarize([one.total_ms for one in samples])
            if stats.half_width <= budget.interval:
                return samples, "interval"
        if clock() >= end:
            return samples, "limit"


def require_percentiles(task: str, stats: Stats, percentiles: tuple[float, ...]) -> None:
    """Refuse to go without a percentile that was asked for.

    Raises:
        MeasurementError: too few samples for one of them.
    """
    for percent in percentiles:
        needed = needed_samples(percent)
        if stats.count < needed:
            raise MeasurementError(
                f"bench {task}: expected {needed} samples for the {percent:g}th percentile, got "
                f"{stats.count} before the time was up. Raise --limit or leave it out."
            )
