"""When sampling stops, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import numpy as np
import pytest

from visionllm_edge.benchmarks.bench.load_patterns import at_rate
from visionllm_edge.benchmarks.bench.sampling import (
    Budget,
    Timed,
    require_percentiles,
    sample_until,
)
from visionllm_edge.benchmarks.bench.statistics import summarize
from visionllm_edge.runtime.errors import MeasurementError


class Clock:
    """Goes on by what each request takes."""

    def __init__(self, times_ms: Iterator[float]) -> None:
        self.now, self.times, self.asked = 0.0, times_ms, 0

    def __call__(self) -> float:
        return self.now

    def request(self) -> Timed:
        time = next(self.times)
        self.now += time / 1000
        self.asked += 1
        return Timed(time, ())

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_steady_times_stop_early() -> None:
    clock = Clock(cycle([10.0, 10.1]))
    samples, stopped = sample_until(clock.request, Budget(0.02, 100.0), clock=clock)
    assert stopped == "interval"
    assert len(samples) == Budget().least == 29
    assert clock.asked == 29 + 3  # the warm-up is not among the samples


def test_jumpy_times_go_on_to_the_limit() -> None:
    rng = np.random.default_rng(0)
    clock = Clock(iter(rng.lognormal(2, 1.0, 10_000).tolist()))
    samples, stopped = sample_until(clock.request, Budget(0.001, 5.0), clock=clock)
    assert stopped == "limit"
    assert clock.now >= 5.0
    assert len(samples) == clock.asked - 3


def test_a_percentile_with_too_few_samples_is_refused() -> None:
    stats = summarize([1.0] * 40)
    require_percentiles("detect", stats, (50, 90))
    with pytest.raises(MeasurementError, match=r"expected 299 samples.*99th.*got 40.*--limit"):
        require_percentiles("detect", stats, (50, 99))


def test_answers_faster_than_the_camera_wait_for_it() -> None:
    clock = Clock(cycle([10.0]))
    jitter = at_rate(clock.request, "detect", 10.0, seconds=0.9, clock=clock, sleep=clock.sleep)
    assert jitter.latency_ms.count == 9
    assert jitter.latency_ms.largest == pytest.approx(10.0)
    assert (jitter.late, jitter.skipped) == (0.0, 0)


def test_moments_that_pass_meanwhile_are_skipped() -> None:
    clock = Clock(cycle([260.0]))
    jitter = at_rate(clock.request, "detect", 10.0, seconds=1.0, clock=clock, sleep=clock.sleep)
    # Asked at 0, 200 (begun at 260), 500 (begun at 520) and 700 (begun at 780).
    assert (jitter.latency_ms.count, jitter.skipped) == (4, 6)
    assert jitter.late == pytest.approx(2 / 4)  # 60 and 80 ms are more than half a period


def test_a_slow_answer_counts_from_when_it_was_due() -> None:
    clock = Clock(iter([10.0, 140.0, 10.0, 10.0]))
    jitter = at_rate(clock.request, "detect", 10.0, seconds=0.4, clock=clock, sleep=clock.sleep)
    assert jitter.latency_ms.count == 4
    # The third request was due at 200 ms and began at 240.
    assert jitter.latency_ms.mean == pytest.approx((10 + 140 + 50 + 10) / 4)
