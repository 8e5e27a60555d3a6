"""A measurement in a process of its own: its memory is that of one bundle and nothing before it."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import click

from visionllm_edge.benchmarks.bench.measurement import Result, Workload
from visionllm_edge.benchmarks.bench.run import BenchOptions, bench_bundle
from visionllm_edge.runtime.errors import BackendError

__all__ = ["bench_apart"]


def bench_apart(path: Path, workload: Workload, options: BenchOptions) -> Result:
    """As `bench_bundle`, without the accuracy; progress goes to standard error.

    Raises:
        EdgeError: what `bench_bundle` raises.
        BackendError: the process was ended.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_bench, path, workload, options).result()
        except BrokenProcessPool as e:
            raise BackendError(
                f"bench '{path.name}': expected a result, its process was ended before it had one "
                "(often by the system, for want of memory). Free memory, or measure fewer tasks."
            ) from e


def _bench(path: Path, workload: Workload, options: BenchOptions) -> Result:
    return bench_bundle(path, workload, options, note=_say)


def _say(text: str) -> None:
    click.echo(f"bench: {text}", err=True)
