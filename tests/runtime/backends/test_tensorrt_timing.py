"""Device times of the TensorRT backend on the fake device: 1 ms for a copy, `run_ms` for a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runtime.backends.loaded_engine import ADD, Loaded, add_engine, load, rows
from visionllm_edge.benchmarks.bench.recorder import DeviceTimes
from visionllm_edge.runtime.errors import BackendError


@pytest.fixture
def adder(tmp_path: Path) -> Loaded:
    return load(tmp_path, ADD, add_engine())


def inputs(n: int = 3) -> dict[str, np.ndarray]:
    return {"a": rows(n, 1), "b": rows(n, 2)}


def times(loaded: Loaded) -> tuple[float, float]:
    """Of the last run."""
    last = loaded.stage.device_times_ms()
    assert last is not None
    return last()


def test_a_run_that_nobody_times_pays_nothing(adder: Loaded) -> None:
    assert isinstance(adder.stage, DeviceTimes)
    for _ in range(3):
        adder.stage.run(inputs())
    adder.stage.run_kept(inputs())
    # The one event of `run_kept`, and its one mark.
    assert adder.device.calls.count("new_event") == 1
    assert adder.device.calls.count("event.record") == 1
    assert adder.stage.device_times_ms() is None


@pytest.mark.parametrize("mapped", [False, True])
def test_run_and_copies_apart(tmp_path: Path, mapped: bool) -> None:
    adder = load(tmp_path, ADD, add_engine(), maps_host_memory=mapped)
    adder.stage.time_device()
    assert adder.stage.device_times_ms() is None
    for n, run_ms in ((3, 100.0), (3, 70.0), (3, 50.0), (3, 40.0), (5, 20.0), (3, 10.0)):
        adder.trt.run_ms = run_ms  # a mark that a replay did not set would give an older number
        assert np.array_equal(adder.stage.run(inputs(n))["sum"], rows(n, 3))
        # Two inputs in and one output out; an integrated device copies nothing.
        assert times(adder) == (run_ms, 0.0 if mapped else 3.0)
    assert adder.stage.recorded == 1


def test_a_recording_without_marks_is_not_replayed(adder: Loaded) -> None:
    for _ in range(4):
        adder.stage.run(inputs())
    assert adder.stage.recorded == 1
    adder.stage.time_device()
    adder.stage.time_device()
    for _ in range(4):
        adder.stage.run(inputs())
        assert times(adder) == (100.0, 3.0)
    assert adder.stage.recorded == 2
    assert adder.device.calls.count("new_event") == 5


def test_nobody_waits_because_of_a_measurement(adder: Loaded) -> None:
    adder.stage.time_device()
    asked = []
    adder.device.calls.clear()
    first = adder.stage.run_kept(inputs())["sum"]
    asked.append(adder.stage.device_times_ms())
    assert "stream.synchronize" not in adder.device.calls
    assert adder.device.now_ms == 0.0, "nothing was waited for, so nothing ran"
    # Reads an input that is on the device, and copies the other; the first run happens now.
    adder.stage.run_kept({"a": first, "b": rows(3, 2)})
    asked.append(adder.stage.device_times_ms())
    assert adder.device.now_ms == 102.0
    adder.trt.run_ms = 30.0
    adder.stage.run(inputs())
    # Asked for when other runs have used the same marks.
    assert [one() for one in asked if one is not None] == [(100.0, 2.0), (30.0, 1.0)]
    assert times(adder) == (30.0, 3.0)


@pytest.mark.parametrize("call", ["stream.synchronize", "event.record"])
def test_a_run_that_failed_has_no_time(adder: Loaded, call: str) -> None:
    adder.stage.time_device()
    adder.stage.run(inputs())
    adder.device.fail[call] = 1
    with pytest.raises(BackendError, match="failed as planned"):
        adder.stage.run(inputs(5))
    assert adder.stage.device_times_ms() is None
    adder.stage.run(inputs())
    assert times(adder) == (100.0, 3.0)


def test_asking_waits_for_the_run(adder: Loaded) -> None:
    adder.stage.time_device()
    for run_ms in (100.0, 80.0, 60.0):
        adder.trt.run_ms = run_ms
        kept = adder.stage.run_kept(inputs())
        assert times(adder) == (run_ms, 2.0)
        assert np.array_equal(np.asarray(kept["sum"]), rows(3, 3))
