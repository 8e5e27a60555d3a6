"""Spans say which stage ran when; what the stages answer stays the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

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
    """One that knows what its device did, and takes 7 ms to say so."""

    timed = 0

    def time_device(self) -> None:
        self.timed += 1

    def device_times_ms(self) -> Callable[[], tuple[float, float]] | None:
        run = self.clock[0]

        def times() -> tuple[float, float]:
            self.clock[0] += 7_000_000
            return run / 1e6, 0.5

        return times


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
    runner = OnDevice(clock)
    stages = recorder.observe(Made(runner))
    asked = [runner.timed]
    stages.get("double").run({"x": np.ones((1, 2), np.float32)})
    asked.append(runner.timed)
    recorder.begin()
    for _ in range(2):
        stages.get("double").run({"x": np.ones((1, 2), np.float32)})
    total, spans = recorder.end()
    asked.append(runner.timed)
    assert asked == [0, 1, 1], "asked for once, when the recorder sees the stage"
    assert [(span.host_ms, span.device_ms, span.copy_ms) for span in spans] == [
        (3.0, 6.0, 0.5),
        (3.0, 9.0, 0.5),
    ]
    # The device is asked when the request is over: the answer takes none of its time.
    assert total == 6.0


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


def test_each_threads_runs_get_the_times_of_their_own_device() -> None:
    clocks = [0], [0]
    runners = [OnDevice(clock) for clock in clocks]
    clocks[1][0] = 40_000_000
    recorder = Recorder(lambda: clocks[0][0])
    one, other = (recorder.observe(Made(runner)).get("double") for runner in runners)
    x = {"x": np.ones((1, 2), np.float32)}
    recorder.begin()
    one.run(x)
    worker = threading.Thread(target=lambda: other.run_kept(x))
    worker.start()
    worker.join()
    one.run(x)
    total, spans = recorder.end()
    assert sorted((span.thread, span.device_ms) for span in spans) == [(0, 3), (0, 6), (1, 43)]
    assert total == 6.0, "the answers take none of the request's time"


def test_two_threads_that_come_first_ask_a_runner_for_its_times_once() -> None:
    runner, met = OnDevice([0]), threading.Barrier(2, timeout=20)
    stages, first = Recorder().observe(Made(runner)), threading.Event()
    ask = runner.time_device

    def slow() -> None:
        first.wait(0.05)  # room for the other one, if nothing keeps it out
        ask()

    def get() -> None:
        met.wait()
        got.append(stages.get("double"))
        first.set()

    runner.time_device = slow  # type: ignore[method-assign]
    got: list[object] = []
    threads = [threading.Thread(target=get) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runner.timed == 1 and got[0] is got[1]


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
