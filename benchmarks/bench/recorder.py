"""Writes down when each stage of a bundle ran, without changing what it does.

``Recorder.observe`` is given to ``VisionLLM.from_bundle``: every stage that the pipeline asks for
comes back inside a wrapper that notes begin, end and thread of each run. Where a backend works on
a device of its own, its runner times that, too, and says what the device did when the request is
over: nobody waits for a device in the middle of one. Without such a runner the fields stay empty.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol, TypeVar, runtime_checkable

from visionllm_edge.benchmarks.bench.measurement import Span
from visionllm_edge.runtime.backends.base import KVCache, StageRunner
from visionllm_edge.runtime.pipelines.stages import Stages
from visionllm_edge.runtime.ports import Array, StagePorts, Tensor

__all__ = ["DeviceTimes", "Hook", "Recorder"]

Hook = Callable[[str, StageRunner], object]
T = TypeVar("T")
_Times = Callable[[], tuple[float, float]]


@runtime_checkable
class DeviceTimes(Protocol):
    """A runner whose device keeps its own times, if asked to."""

    def time_device(self) -> None:
        """Time every run from now on."""
        ...

    def device_times_ms(self) -> Callable[[], tuple[float, float]] | None:
        """Of the last run: a function that gives its time on the device and that of the copies.

        It may wait for the device, and is good for later. None if the run was not timed.
        """
        ...


class Recorder:
    """Collects the spans of one request at a time.

    Args:
        clock_ns: the clock.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        """Nothing is written down until `begin`."""
        self._clock_ns = clock_ns
        self._start = 0
        self._spans: list[tuple[Span, _Times | None]] | None = None
        self._threads: dict[int, int] = {}
        self._lock = threading.Lock()
        self._hooks: tuple[Hook, Hook] | None = None
        self._alone = threading.Lock()

    def observe(self, stages: Stages) -> Stages:
        """The same stages, inside wrappers."""
        return _RecordedStages(stages, self)

    def begin(self) -> None:
        """A request begins now."""
        self._spans = []
        self._threads = {threading.get_ident(): 0}
        self._start = self._clock_ns()

    def end(self) -> tuple[float, tuple[Span, ...]]:
        """The request ends now: its wall time in ms, and its spans in the order of their begin."""
        total = (self._clock_ns() - self._start) / 1e6
        with self._lock:
            noted, self._spans = self._spans or [], None
        spans = []
        for span, times in noted:
            if times is not None:
                device_ms, copy_ms = times()
                span = replace(span, device_ms=device_ms, copy_ms=copy_ms)
            spans.append(span)
        return total, tuple(sorted(spans, key=lambda span: span.start_ms))

    def since_begin_ms(self) -> float:
        """Time since the request began."""
        return (self._clock_ns() - self._start) / 1e6

    def run(self, stage: str, runner: StageRunner, rows: int, call: Callable[[], T]) -> T:
        """Call what runs a stage, and write it down. For any thread."""
        if self._hooks is None:
            start = self._clock_ns()
            out = call()
            self._note(stage, runner, start, self._clock_ns(), rows)
            return out
        before, after = self._hooks
        with self._alone:
            before(stage, runner)
            start = self._clock_ns()
            out = call()
            stop = self._clock_ns()
            after(stage, runner)
        self._note(stage, runner, start, stop, rows)
        return out

    @contextmanager
    def hooks(self, before: Hook, after: Hook) -> Iterator[None]:
        """Call these around every run of a stage inside the block; their time counts, too.

        One stage runs at a time meanwhile, so that what they see belongs to that stage.
        """
        self._hooks = before, after
        try:
            yield
        finally:
            self._hooks = None

    def _note(self, stage: str, runner: StageRunner, start: int, stop: int, rows: int) -> None:
        times = runner.device_times_ms() if isinstance(runner, DeviceTimes) else None
        with self._lock:
            if self._spans is None:
                return
            thread = self._threads.setdefault(threading.get_ident(), len(self._threads))
            span = Span(
                stage=stage,
                start_ms=(start - self._start) / 1e6,
                host_ms=(stop - start) / 1e6,
                rows=rows,
                thread=thread,
            )
            self._spans.append((span, times))


class _RecordedStages:
    def __init__(self, stages: Stages, recorder: Recorder) -> None:
        self._stages, self._recorder = stages, recorder
        # By the runner itself: a bucket that was dropped and loaded again is another one.
        self._wrapped: dict[int, _RecordedRunner] = {}
        # A runner is asked once for its device's times, whichever thread comes first.
        self._lock = threading.Lock()

    def get(self, name: str, bucket: tuple[int, int] | None = None) -> StageRunner:
        runner = self._stages.get(name, bucket)
        with self._lock:
            wrapped = self._wrapped.get(id(runner))
            if wrapped is None or wrapped.inner is not runner:
                if isinstance(runner, DeviceTimes):
                    runner.time_device()
                wrapped = self._wrapped[id(runner)] = _RecordedRunner(name, runner, self._recorder)
            return wrapped


class _RecordedRunner:
    def __init__(self, name: str, inner: StageRunner, recorder: Recorder) -> None:
        self._name, self.inner, self._recorder = name, inner, recorder

    @property
    def ports(self) -> StagePorts:
        return self.inner.ports

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        return self._recorder.run(
            self._name, self.inner, _rows(inputs), lambda: self.inner.run(inputs)
        )

    def run_kept(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._recorder.run(
            self._name, self.inner, _rows(inputs), lambda: self.inner.run_kept(inputs)
        )

    def new_cache(self, capacity: int) -> KVCache:
        return self.inner.new_cache(capacity)

    def run_with_cache(self, inputs: Mapping[str, Tensor], cache: KVCache) -> dict[str, Array]:
        return self._recorder.run(
            self._name, self.inner, _rows(inputs), lambda: self.inner.run_with_cache(inputs, cache)
        )


def _rows(inputs: Mapping[str, Tensor]) -> int:
    """Positions of a decoder step, else the length of the first input's first axis."""
    embeds = inputs.get("inputs_embeds")
    if embeds is not None:
        return int(embeds.shape[1])
    first = next(iter(inputs.values()))
    return int(first.shape[0]) if first.shape else 1
