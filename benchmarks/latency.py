"""Interleaved timing: which of two ways to compute the same thing is quicker, and by how much.

The contestants run in turns, A B A B, so that whatever else the machine is doing slows all of them
alike. Read medians and ratios, not single times. Knows nothing about models: a contestant is a
function without arguments that returns when its work is done.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["InterleavedTimes", "Timing", "percentile", "time_interleaved"]


@dataclass(frozen=True)
class Timing:
    """The times of one contestant.

    Attributes:
        times_ms: Every measured run, in order.
    """

    times_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Median of the runs."""
        return statistics.median(self.times_ms)

    def to_dict(self) -> dict[str, float | int]:
        """Plain JSON types: median, p90, fastest, slowest, number of runs."""
        return {
            "median_ms": self.median_ms,
            "p90_ms": percentile(self.times_ms, 90),
            "min_ms": min(self.times_ms),
            "max_ms": max(self.times_ms),
            "runs": len(self.times_ms),
        }


@dataclass(frozen=True)
class InterleavedTimes:
    """The times of all contestants of one interleaved run, in the order they were given."""

    timings: dict[str, Timing]

    def speedup(self, name: str, over: str) -> float:
        """How many times faster ``name`` is than ``over``.

        The median of the per-round ratios: the two runs of a round stand next to each other in
        time, so a slow spell of the machine cancels out.
        """
        pairs = zip(self.timings[over].times_ms, self.timings[name].times_ms, strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types; ``speedup_over_first`` compares each with the first contestant."""
        first = next(iter(self.timings))
        return {
            name: timing.to_dict() | {"speedup_over_first": self.speedup(name, first)}
            for name, timing in self.timings.items()
        }


def time_interleaved(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup: int = 3,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> InterleavedTimes:
    """Run each contestant once per round, in turns.

    Args:
        contestants: Name to function.
        rounds: Measured rounds, at least 1.
        warmup: Rounds before, which are not measured.
        clock_ns: The clock.

    Raises:
        ValueError: No contestant, or no round.
    """
    if not contestants or rounds < 1 or warmup < 0:
        raise ValueError("expected at least one contestant, one round and no negative warm-up")
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for measured in [False] * warmup + [True] * rounds:
        for name, run in contestants.items():
            start = clock_ns()
            run()
            stop = clock_ns()
            if measured:
                times[name].append((stop - start) / 1e6)
    return InterleavedTimes({name: Timing(tuple(ones)) for name, ones in times.items()})


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that ``percent`` of all do not exceed."""
    ordered = sorted(values)
    rank = math.ceil(percent / 100 * len(ordered))
    return ordered[max(rank, 1) - 1]
