"""Which differences between two results are real.

Results of one session were measured in turns, so that whatever the machine did meanwhile slowed
both alike: the ratio is taken request by request. Neighbouring requests resemble each other, so the
bootstrap draws blocks of them. One interval is made for the whole request and for each stage, and
all of them together are right with 95 % certainty.

Results of two sessions carry the difference between two moments of the machine, which no interval
sees. Such a difference counts as real only where it is also larger than `DRIFT`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.benchmarks.bench.measurement import Result, TaskTimes
from visionllm_edge.benchmarks.bench.statistics import CONFIDENCE
from visionllm_edge.benchmarks.bench.table_text import aligned
from visionllm_edge.runtime.errors import InputError, MeasurementError

__all__ = ["DRIFT", "Comparison", "Difference", "compare_results", "comparison_table"]

DRIFT = 0.05
"""What one machine differs by from one session to the next, seen on virtual machines."""

_DRAWS = 4000
_LEAST_PAIRS = 20
_SEED = 20_261_123

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """One time, in both results.

    Attributes:
        what: the task, or task and stage.
        before_ms: median of the first result.
        after_ms: median of the second.
        ratio: after over before.
        low: lower end of the ratio's interval.
        high: its upper end.
        real: whether the interval leaves 1 out (and, between sessions, the drift as well).
    """

    what: str
    before_ms: float
    after_ms: float
    ratio: float
    low: float
    high: float
    real: bool

    def beyond(self, tolerance: float) -> bool:
        """Whether it became slower for real, and by more than the tolerance."""
        return self.real and self.ratio > 1 + tolerance


@dataclass(frozen=True)
class Comparison:
    """All differences; the tasks first.

    Attributes:
        interleaved: whether both were measured in turns.
        differences: of tasks, then of stages.
        notes: what else differs between the results.
    """

    interleaved: bool
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    def slower(self, tolerance: float) -> tuple[Difference, ...]:
        """What became slower for real by more than the tolerance."""
        return tuple(one for one in self.differences if one.beyond(tolerance))


def compare_results(before: Result, after: Result) -> Comparison:
    """Compare the tasks that both have.

    Raises:
        InputError: no task in common.
        MeasurementError: too few requests to tell anything.
    """
    interleaved = before.session is not None and before.session == after.session
    pairs = [
        (one, other) for one in before.tasks for other in after.tasks if other.name == one.name
    ]
    if not pairs:
        raise InputError(
            f"bench compare: expected a task that both results have, got "
            f"{_names(before.tasks)} and {_names(after.tasks)}. Measure the same tasks."
        )
    series: list[tuple[str, Times, Times]] = []
    for one, other in pairs:
        count = min(len(one.samples), len(other.samples))
        if count < _LEAST_PAIRS:
            raise MeasurementError(
                f"bench compare {one.name}: expected at least {_LEAST_PAIRS} requests in both "
                f"results, got {count}. Raise --limit."
            )
        series.append((one.name, _totals(one), _totals(other)))
        stages = dict.fromkeys(span.stage for sample in one.samples for span in sample.spans)
        series += [
            (f"{one.name}: {stage}", _of_stage(one, stage), _of_stage(other, stage))
            for stage in stages
            if any(span.stage == stage for sample in other.samples for span in sample.spans)
        ]
    # Tasks first, then stages: people read from the top.
    series.sort(key=lambda entry: ":" in entry[0])
    level = (1 - CONFIDENCE) / len(series)
    rng = np.random.default_rng(_SEED)
    return Comparison(
        interleaved,
        tuple(_difference(*entry, interleaved, level, rng) for entry in series),
        _notes(before, after),
    )


def comparison_table(comparison: Comparison, tolerance: float) -> str:
    """For the terminal."""
    rows = [("", "before ms", "after ms", "ratio", "interval", "")]
    for one in comparison.differences:
        said = "" if not one.real else "slower" if one.ratio > 1 else "faster"
        if one.beyond(tolerance):
            said = f"slower, beyond {tolerance:.0%}"
        rows.append(
            (
                one.what,
                f"{one.before_ms:.3f}",
                f"{one.after_ms:.3f}",
                f"{one.ratio:.3f}",
                f"{one.low:.3f} to {one.high:.3f}",
                said,
            )
        )
    way = (
        "measured in turns"
        if comparison.interleaved
        else f"measured apart: differences below {DRIFT:.0%} do not count (use --vs)"
    )
    return "\n".join([way, aligned(rows), *(f"Note: {note}" for note in comparison.notes)])


def _difference(
    what: str,
    before: Times,
    after: Times,
    interleaved: bool,
    level: float,
    rng: np.random.Generator,
) -> Difference:
    if interleaved:
        count = min(len(before), len(after))
        logs = np.log(after[:count]) - np.log(before[:count])
        logs = logs[np.isfinite(logs)]  # a stage that a request did not run has no ratio
        if len(logs) < _LEAST_PAIRS:
            middle, (low, high) = 0.0, (-math.inf, math.inf)
        else:
            middle = float(np.median(logs))
            low, high = _interval(_medians(logs, rng), level)
        drift = 0.0
    else:
        before, after = before[before > 0], after[after > 0]
        middle = float(np.log(np.median(after)) - np.log(np.median(before)))
        draws = _medians(np.log(after), rng) - _medians(np.log(before), rng)
        low, high = _interval(draws, level)
        drift = math.log1p(DRIFT)
    real = (low > 0 and middle > drift) or (high < 0 and middle < -drift)
    return Difference(
        what,
        float(np.median(before[before > 0])),
        float(np.median(after[after > 0])),
        math.exp(middle),
        math.exp(low),
        math.exp(high),
        real,
    )


def _medians(values: Times, rng: np.random.Generator) -> Times:
    """Medians of bootstrap draws; each draw is made of blocks of neighbours, as a ring."""
    count = len(values)
    length = max(1, round(count ** (1 / 3)))
    blocks = -(-count // length)
    starts = rng.integers(0, count, size=(_DRAWS, blocks, 1))
    index = (starts + np.arange(length)) % count
    drawn: Times = np.median(values[index.reshape(_DRAWS, -1)[:, :count]], axis=1)
    return drawn


def _interval(draws: Times, level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [level / 2, 1 - level / 2])
    return float(low), float(high)


def _totals(task: TaskTimes) -> Times:
    return np.array([sample.total_ms for sample in task.samples])


def _of_stage(task: TaskTimes, stage: str) -> Times:
    """Time of a stage per request; 0 where a request did not run it."""
    return np.array(
        [
            sum(span.host_ms for span in sample.spans if span.stage == stage)
            for sample in task.samples
        ]
    )


def _notes(before: Result, after: Result) -> tuple[str, ...]:
    notes = []
    for what, one, other in (
        ("device", before.environment.device, after.environment.device),
        ("threads", before.environment.threads, after.environment.threads),
        ("overlap", before.environment.overlap, after.environment.overlap),
        ("power mode", before.environment.before.power_mode, after.environment.before.power_mode),
        ("picture size", before.workload.image_px, after.workload.image_px),
        ("classes", len(before.workload.classes), len(after.workload.classes)),
        ("output tokens", before.workload.output_tokens, after.workload.output_tokens),
    ):
        if one != other:
            notes.append(f"{what} differs: {one} before, {other} after")
    for name, value in before.environment.versions.items():
        other_version = after.environment.versions.get(name)
        if other_version != value:
            notes.append(f"{name} {value} before, {other_version} after")
    return tuple(notes)


def _names(tasks: Sequence[TaskTimes]) -> str:
    return ", ".join(task.name for task in tasks) or "none"
