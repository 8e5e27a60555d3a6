"""Spans say which stage ran when; what the stages answer stays the same."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from visionllm_edge.benchmarks.bench.recorder import Recorder
from visionllm_edge.runtime.backends.base import KVCache
from visionllm_edge.runtime.ports import Array, Port, StagePorts, Tensor

PORTS = StagePorts("double", (Port("x", "float32", ("n", 2)),), (Port("y", "float32", ("n", 2)),))


class Double:
    """A stage that doubles, and takes 3 ms of a made-up clock."""

    def __init__(self, clock: list[int]) -> None:
        self.clock = clock

    @property
    def ports(self) -> StagePorts:
        return PORTS

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        self.clock[0] += 3_000_000
        return {"y": 2 * np.asarray(inputs["x"])}

    def run_kept(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**self.run(inputs)}

    def new_cache(self, capacity: int) -> KVCache:
        raise AssertionError("no test asks for a cache")

    def run_with_cache(self, inputs: Mapping[str, Tensor], cache: KVCache) -> dict[str, Array]:
        return self.run(inputs)


class OnDevice(Double):
    """One that knows what its device did."""

    def device_times_ms(self) -> tuple[float, float] | None:
        return 2.0, 0.5


class Made:
    """Stages of one runner."""

    def __init__(self, runner: Double) -> None:
        self.runner = runner

    def get(self, name: str, bucket: tuple[int, int] | None = None) -> Double:
        return self.runner


def test_a_request_with_two_runs() -> None:
    clock = [0]
    recorder = Recorder(lambda: clock[0])
    stages = recorder.observe(Made(Double(clock)))
    x = np.ones((5, 2), np.float32)
    stages.get("double").run({"x": x})  # before the request: not written down
    recorder.begin()
    clock[0] += 1_000_000
    np.testing.assert_array_equal(stages.get("double").run({"x": x})["y"], 2 * x)
    assert recorder.since_begin_ms() == 4.0
    stages.get("double").run_kept({"x": x[:1]})
    clock[0] += 500_000
    total, spans = recorder.end()
    assert total == 7.5
    assert [(s.stage, s.start_ms, s.host_ms, s.rows) for s in spans] == [
        ("double", 1.0, 3.0, 5),
        ("double", 4.0, 3.0, 1),
    ]
    assert spans[0].device_ms is None and spans[0].thread == 0
    assert stages.get("double").ports is PORTS
    assert stages.get("double") is stages.get("double")


def test_device_and_copies_apart() -> None:
    clock = [0]
    recorder = Recorder(lambda: clock[0])
    stages = recorder.observe(Made(OnDevice(clock)))
    recorder.begin()
    stages.get("double").run({"x": np.ones((1, 2), np.float32)})
    _, (span,) = recorder.end()
    assert (span.host_ms, span.device_ms, span.copy_ms) == (3.0, 2.0, 0.5)


def test_hooks_stand_around_every_run() -> None:
    clock, seen = [0], []
    recorder = Recorder(lambda: clock[0])
    stages = recorder.observe(Made(Double(clock)))
    x = {"x": np.ones((1, 2), np.float32)}
    with recorder.hooks(
        lambda stage, runner: seen.append(f"before {stage}"),
        lambda stage, runner: seen.append(f"after {stage}"),
    ):
        stages.get("double").run(x)
    stages.get("double").run(x)
    assert seen == ["before double", "after double"]


def test_a_run_on_another_thread_is_a_span_of_that_thread() -> None:
    clock = [0]
    recorder = Recorder(lambda: clock[0])
    stages = recorder.observe(Made(Double(clock)))
    x = {"x": np.ones((1, 2), np.float32)}
    recorder.begin()
    stages.get("double").run(x)
    worker = threading.Thread(target=lambda: stages.get("double").run_kept(x))
    worker.start()
    worker.join()
    stages.get("double").run(x)
    _, spans = recorder.end()
    assert [span.thread for span in spans] == [0, 1, 0]
    assert [span.start_ms for span in spans] == [0.0, 3.0, 6.0]


def test_under_hooks_one_stage_runs_at_a_time_and_a_failure_lets_the_next_one_in() -> None:
    clock, seen = [0], []
    recorder = Recorder(lambda: clock[0])
    runner = Double(clock)
    inside, x = threading.Event(), {"x": np.ones((1, 2), np.float32)}
    run = runner.run

    def slow(inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        seen.append("in")
        inside.set()
        other_came.wait(0.05)  # room for the other one, if nothing keeps it out
        seen.append("out")
        if len(seen) == 2:
            raise ValueError("planned")
        return run(inputs)

    runner.run = slow  # type: ignore[method-assign]
    stages, other_came = recorder.observe(Made(runner)), threading.Event()

    def other() -> None:
        inside.wait()
        stages.get("double").run(x)
        other_came.set()

    worker = threading.Thread(target=other)
    worker.start()
    with recorder.hooks(lambda stage, runner: None, lambda stage, runner: None):
        try:
            stages.get("double").run(x)
        except ValueError as error:
            seen.append(str(error))
        worker.join()
    assert [word for word in seen if word != "planned"] == ["in", "out", "in", "out"]
    assert "planned" in seen
