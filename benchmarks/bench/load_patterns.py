"""Requests that do not wait politely for each other: the first one, a fixed rate, many at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from visionllm_edge.benchmarks.bench.measurement import Cold, Jitter, Throughput, Workload
from visionllm_edge.benchmarks.bench.sampling import Timed
from visionllm_edge.benchmarks.bench.statistics import summarize
from visionllm_edge.benchmarks.bench.worker import start_workers

__all__ = ["at_rate", "cold_start", "throughput"]

# A request that begins later than this share of a period is late.
_LATE = 0.5


def cold_start(
    bundle: Path,
    tasks: Sequence[str],
    workload: Workload,
    *,
    threads: int | None,
    overlap: bool | None = None,
) -> Cold:
    """Load and ask once, in a new process per task; the files may be in the system's cache.

    Raises:
        BackendError: a process failed.
    """
    loads, first = [], {}
    for task in tasks:
        with start_workers(
            1, bundle, task, workload, threads=threads, overlap=overlap, seconds=0
        ) as (worker,):
            worker.wait_ready()
            worker.go()
            result = worker.result()
        loads.append(float(result["load_ms"]))
        first[task] = float(result["times_ms"][0])
    return Cold(summarize(loads).p50, first)


def throughput(
    bundle: Path,
    task: str,
    workload: Workload,
    processes: int,
    *,
    threads: int | None,
    seconds: float,
    overlap: bool | None = None,
) -> Throughput:
    """So many processes ask at the same time, each its own copy of the model.

    Raises:
        BackendError: a process failed.
    """
    with start_workers(
        processes, bundle, task, workload, threads=threads, overlap=overlap, seconds=seconds
    ) as workers:
        for worker in workers:
            worker.wait_ready()
        begin = time.monotonic()
        for worker in workers:
            worker.go()
        times = [t for worker in workers for t in worker.result()["times_ms"]]
        wall = time.monotonic() - begin
    return Throughput(task, processes, len(times) / wall, summarize(times))


def at_rate(
    request: Callable[[], Timed],
    task: str,
    rate: float,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Jitter:
    """Ask at fixed moments, as a camera would; a moment that passes meanwhile is skipped.

    Args:
        request: asks once.
        task: for the result.
        rate: requests a second.
        seconds: how long.
        clock: seconds.
        sleep: waits so many seconds.
    """
    period = 1 / rate
    begin = clock()
    latencies: list[float] = []
    late = skipped = index = 0
    while index * period < seconds:
        due = begin + index * period
        wait = due - clock()
        if wait > 0:
            sleep(wait)
        late += clock() - due > _LATE * period
        request()
        done = clock()
        latencies.append((done - due) * 1000)
        # The next moment that has not passed yet.
        following = max(index + 1, int((done - begin) / period))
        skipped += following - index - 1
        index = following
    return Jitter(task, rate, summarize(latencies), late / len(latencies), skipped)
