"""A loaded bundle, asked one request at a time under the recorder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from visionllm_edge.benchmarks.bench.measurement import Workload
from visionllm_edge.benchmarks.bench.recorder import Recorder
from visionllm_edge.benchmarks.bench.sampling import Timed
from visionllm_edge.benchmarks.bench.tasks import BenchTask, pictures
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.events import DoneEvent, Event, GroupEvent, TokenEvent
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.pipelines.loading import LoadOptions, Observe

__all__ = ["Requester"]


class Requester:
    """One model and its recorder.

    Args:
        path: the bundle; its files are not hashed again.
        workload: what is asked.
        threads: of the backend.
        overlap: of the runtime, see `LoadOptions`.
        change: replaces the stages below the recorder, to see what a change would cost.
    """

    def __init__(
        self,
        path: Path,
        workload: Workload,
        *,
        threads: int | None = None,
        overlap: bool | None = None,
        change: Observe | None = None,
    ) -> None:
        """Load the bundle."""
        self.workload = workload
        self.recorder = Recorder()
        begin = time.perf_counter()
        self.model = VisionLLM.from_bundle(
            Bundle.open(path, verify=False),
            LoadOptions(threads=threads, overlap=overlap),
            observe=lambda stages: self.recorder.observe(change(stages) if change else stages),
        )
        self.load_ms = (time.perf_counter() - begin) * 1000
        self._pictures = pictures(workload)

    def requests(self, task: BenchTask) -> Callable[[], Timed]:
        """A function that asks the task about the next picture."""

        def request() -> Timed:
            image = next(self._pictures)
            first: list[float] = []
            tokens: list[float] = []

            def listen(event: Event) -> None:
                at = self.recorder.since_begin_ms()
                if isinstance(event, TokenEvent):
                    tokens.append(at)
                # A group is named before its objects are found; the end is no first sign of life.
                if not isinstance(event, GroupEvent | DoneEvent):
                    first.append(at)

            self.recorder.begin()
            task.ask(self.model, image, self.workload, listen)
            total, spans = self.recorder.end()
            return Timed(total, spans, first[0] if first else None, tuple(tokens))

        return request
