"""The most memory that the process held while each stage ran."""

from __future__ import annotations

from collections.abc import Sequence

from visionllm_edge.benchmarks.bench.process_memory import peak_since_reset, reset_peak
from visionllm_edge.benchmarks.bench.requester import Requester
from visionllm_edge.benchmarks.bench.tasks import BenchTask
from visionllm_edge.runtime.backends.base import StageRunner

__all__ = ["stage_peaks"]


def stage_peaks(requester: Requester, tasks: Sequence[BenchTask]) -> dict[tuple[str, str], int]:
    """Bytes by task and stage, from one more request of each task, apart from the timed ones.

    Empty where the system cannot reset its mark.
    """
    if not reset_peak():
        return {}
    out: dict[tuple[str, str], int] = {}
    for task in tasks:
        peaks: dict[str, int] = {}

        def before(stage: str, runner: StageRunner) -> None:
            reset_peak()

        def after(stage: str, runner: StageRunner, peaks: dict[str, int] = peaks) -> None:
            peaks[stage] = max(peaks.get(stage, 0), peak_since_reset() or 0)

        with requester.recorder.hooks(before, after):
            requester.requests(task)()
        out |= {(task.name, stage): peak for stage, peak in peaks.items()}
    return out
