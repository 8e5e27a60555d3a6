"""Build stages in processes beside this one.

Stages do not depend on each other. A worker loads the checkpoint once and fills entries of the
stage cache; what it has to say comes back when a stage is done.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

from visionllm_edge.export.build_stage import ModelPair, build_stage
from visionllm_edge.export.cache import StageCache
from visionllm_edge.export.checkpoint import Checkpoint
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages import STAGES, Stage
from visionllm_edge.export.streamed_model import open_model

__all__ = ["BuiltStage", "StageWorkers"]


class BuiltStage(NamedTuple):
    """One finished stage: its name, its wall time, and what there is to say."""

    name: str
    seconds: float
    notes: list[str]


class StageWorkers:
    """Processes that build stages. Use as a context manager: leaving the block ends them.

    Args:
        folder: of the checkpoint.
        cache: where the stages go.
        target: name of the target.
        jobs: processes.
    """

    def __init__(self, folder: Path, cache: StageCache, target: str, jobs: int) -> None:
        """Start them."""
        self._folder, self._cache, self._target = folder, cache, target
        threads = max(1, (os.cpu_count() or 1) // jobs)
        context = multiprocessing.get_context("spawn")
        with _deaf_to_interrupts():
            self._pool = context.Pool(jobs, torch.set_num_threads, (threads,))

    def __enter__(self) -> StageWorkers:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let the processes leave by themselves; after an error or an interruption, end them.

        One that leaves gives back the semaphores that libraries made in it, of which the
        interpreter would complain below our last line.
        """
        if kind is None:
            self._pool.close()
            self._pool.join()
        else:
            self._pool.terminate()

    def build(
        self,
        stages: Sequence[Stage],
        keys: Mapping[str, str],
        precisions: Mapping[str, str],
        config: VisionLLMConfig,
    ) -> Iterator[BuiltStage]:
        """Start on the stages now; yields each when it is in the cache."""
        # Stages with the most to trace first, so that none is left with a long one at the end.
        order = sorted(stages, key=lambda stage: -_weight(stage, config))
        tasks = [
            _Task(
                str(self._folder),
                stage.name,
                keys[stage.name],
                str(self._cache.folder),
                self._target,
                precisions[stage.name],
                config.detector.queries,
            )
            for stage in order
        ]
        return self._pool.imap_unordered(_build_in_worker, tasks)


def _weight(stage: Stage, config: VisionLLMConfig) -> int:
    long = stage.name in ("det_encoder", "det_decoder")
    return len(stage.bucket_list(config)) * (3 if long else 1)


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started inside the block ignore Ctrl-C from their first instruction.

    The parent decides what an interruption means; a worker would only print a traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only, and only it may set handlers
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Task(NamedTuple):
    """One stage for a worker."""

    folder: str
    stage: str
    key: str
    cache_folder: str
    target: str
    precision: str
    queries: int


def _build_in_worker(task: _Task) -> BuiltStage:
    started = time.monotonic()
    pair = _worker_model(task.folder, task.queries)
    stage = next(stage for stage in STAGES if stage.name == task.stage)
    notes: list[str] = []
    with StageCache(Path(task.cache_folder)).writing(task.key) as entry:
        build_stage(
            pair, stage, entry, target=task.target, precision=task.precision, note=notes.append
        )
    return BuiltStage(task.stage, time.monotonic() - started, notes)


_loaded: dict[tuple[str, int], ModelPair] = {}


def _worker_model(folder: str, queries: int) -> ModelPair:
    """The checkpoint's model, loaded once per worker process."""
    if (folder, queries) not in _loaded:
        checkpoint = Checkpoint(Path(folder))
        checkpoint.take_queries(queries)
        _loaded[folder, queries] = open_model(checkpoint)
    return _loaded[folder, queries]
