"""Two bundles in turns, request by request, so that the machine's moods meet both alike."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from visionllm_edge.benchmarks.bench.device_state import read_state, require_same_state
from visionllm_edge.benchmarks.bench.measurement import Energy, Result, Workload
from visionllm_edge.benchmarks.bench.process_memory import peak_bytes
from visionllm_edge.benchmarks.bench.requester import Requester
from visionllm_edge.benchmarks.bench.run import (
    BenchOptions,
    Note,
    bundle_facts,
    environment_of,
    now,
    stage_times,
    task_times,
    warnings_of,
)
from visionllm_edge.benchmarks.bench.sampling import Timed
from visionllm_edge.benchmarks.bench.statistics import summarize
from visionllm_edge.benchmarks.bench.tasks import BenchTask, tasks_of
from visionllm_edge.benchmarks.foreign_load import ForeignLoad
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.pipelines.loading import Observe

__all__ = ["bench_versus"]

_BATCH = 8
_LEAST = 40


def bench_versus(
    first: Path,
    second: Path,
    workload: Workload,
    options: BenchOptions,
    *,
    change: Observe | None = None,
    note: Note = lambda text: None,
) -> tuple[Result, Result]:
    """Measure two bundles in turns; the results share a session.

    Args:
        first: a bundle.
        second: another one, or the same.
        workload: asked of both, with the same pictures.
        options: tasks, budget and threads count; the budget's interval is that of the ratio.
        change: replaces the second bundle's stages, to see what a change would cost.
        note: gets a line per task.

    Raises:
        BundleError, BackendError: one cannot be loaded or run.
        InputError: a task that one of them does not have.
        MeasurementError: the machine changed meanwhile.
    """
    bundles = [Bundle.open(path, verify=False) for path in (first, second)]
    tables = [tasks_of(bundle.manifest.model, options.tasks) for bundle in bundles]
    tasks = [task for task in tables[0] if task in tables[1]]
    before = read_state()
    with ForeignLoad() as foreign:
        requesters = [
            Requester(path, workload, threads=options.threads, overlap=options.overlap, change=put)
            for path, put in ((first, None), (second, change))
        ]
        timed = {task.name: _turns(requesters, task, options) for task in tasks}
    after = read_state()
    require_same_state(before, after)
    session = uuid.uuid4().hex
    results = []
    for side, bundle in enumerate(bundles):
        summaries = [(task_times(task, *timed[task.name][side]), task) for task in tasks]
        times = tuple(task for (task, _), _ in summaries)
        results.append(
            Result(
                created=now(),
                bundle=bundle_facts(bundle),
                environment=environment_of(options, before, after, foreign.cores),
                workload=workload,
                tasks=times,
                stages=tuple(
                    entry
                    for one in times
                    for entry in stage_times(one, timed[one.name][side][0], {})
                ),
                peak_bytes=peak_bytes(),
                energy=Energy("not measured in turns"),
                llm=tuple(llm for (_, llm), _ in summaries if llm is not None),
                warnings=warnings_of(times, foreign.cores),
                session=session,
            )
        )
        note(", ".join(f"{one.name} {one.stats.p50:.2f} ms" for one in times))
    return results[0], results[1]


def _turns(
    requesters: Sequence[Requester],
    task: BenchTask,
    options: BenchOptions,
    clock: Callable[[], float] = time.monotonic,
) -> list[tuple[list[Timed], str]]:
    """Samples of both, and what stopped them. Who goes first alternates."""
    ask = [requester.requests(task) for requester in requesters]
    for _ in range(options.budget.warmup):
        for request in ask:
            request()
    samples: list[list[Timed]] = [[], []]
    end = clock() + options.budget.limit_s
    stopped = "limit"
    while clock() < end:
        order = (0, 1) if len(samples[0]) % 2 == 0 else (1, 0)
        for side in order:
            samples[side].append(ask[side]())
        count = len(samples[0])
        if count >= max(_LEAST, options.budget.least) and count % _BATCH == 0:
            ratios = summarize([b.total_ms / a.total_ms for a, b in zip(*samples, strict=True)])
            if ratios.half_width <= options.budget.interval:
                stopped = "interval"
                break
    return [(side, stopped) for side in samples]
