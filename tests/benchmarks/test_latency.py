"""Interleaved timing, on a clock that the test turns."""

from __future__ import annotations

import subprocess
import sys

import pytest

from visionllm_edge.benchmarks.latency import percentile, time_interleaved


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0
        self.order: list[str] = []
        self.slow = 1

    def __call__(self) -> int:
        return self.now_ns

    def spend(self, name: str, ms: int) -> None:
        self.order.append(name)
        self.now_ns += ms * self.slow * 1_000_000


def test_contestants_take_turns_and_warm_up_is_not_counted() -> None:
    clock = Clock()
    result = time_interleaved(
        {"a": lambda: clock.spend("a", 6), "b": lambda: clock.spend("b", 2)},
        rounds=3,
        warmup=2,
        clock_ns=clock,
    )
    assert clock.order == ["a", "b"] * 5
    assert result.timings["a"].times_ms == (6.0, 6.0, 6.0)
    assert result.speedup("b", "a") == 3.0
    first = result.to_dict()["a"]
    assert first == {
        "median_ms": 6.0,
        "p90_ms": 6.0,
        "min_ms": 6.0,
        "max_ms": 6.0,
        "runs": 3,
        "speedup_over_first": 1.0,
    }


def test_a_slow_spell_does_not_change_the_ratio() -> None:
    clock = Clock()

    def a() -> None:
        # From the third round on, everything takes ten times as long.
        clock.slow = 10 if len(clock.order) >= 4 else 1
        clock.spend("a", 6)

    result = time_interleaved({"a": a, "b": lambda: clock.spend("b", 3)}, warmup=0, clock_ns=clock)
    assert result.speedup("b", "a") == 2.0


def test_percentile_is_a_measured_value() -> None:
    assert percentile([5.0, 1.0, 3.0], 50) == 3.0
    assert percentile(list(map(float, range(1, 11))), 90) == 9.0
    assert percentile(list(map(float, range(1, 11))), 91) == 10.0
    assert percentile([4.0], 1) == 4.0


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one contestant"):
        time_interleaved({})


def test_the_timer_loads_nothing_heavy() -> None:
    code = (
        "import sys, visionllm_edge.benchmarks.latency; "
        "print([m for m in ('numpy', 'torch', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
