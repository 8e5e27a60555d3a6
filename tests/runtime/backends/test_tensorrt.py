"""The TensorRT backend on the fake device: buffers, graphs, profiles, kept outputs, failures."""

from __future__ import annotations

import gc
import hashlib
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.backends.fake_tensorrt import Engine, FakeDevice, FakeTensorRT
from tests.runtime.backends.loaded_engine import ADD, PLAN, Loaded, add_engine, load, rows
from tests.runtime.device.fake import aligned
from visionllm_edge.runtime.backends import StageOptions
from visionllm_edge.runtime.backends.tensorrt import TensorRTBackend
from visionllm_edge.runtime.device import DeviceArray
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.ports import Port, StagePorts


@pytest.fixture(params=["discrete", "integrated"])
def adder(request: pytest.FixtureRequest, tmp_path: Path) -> Loaded:
    return load(tmp_path, ADD, add_engine(), maps_host_memory=request.param == "integrated")


def test_numbers_and_every_size(adder: Loaded) -> None:
    for n in (3, 1, 7, 2, 2000, 2, 2, 2, 2000, 2000, 2000):
        for value in (2.0, 5.0):
            out = adder.stage.run({"a": rows(n, value), "b": rows(n, n)})
            assert list(out) == ["sum"]
            assert np.array_equal(out["sum"], rows(n, value + n))


def test_memory_is_taken_once_and_grown(adder: Loaded) -> None:
    adder.stage.run({"a": rows(3, 1), "b": rows(3, 1)})
    taken = adder.device.taken_bytes
    for n in (200, 1, 150):
        adder.stage.run({"a": rows(n, 1), "b": rows(n, 1)})
    assert adder.device.taken_bytes == taken, "a page holds 256 rows"
    adder.stage.run({"a": rows(2048, 1), "b": rows(2048, 1)})
    gc.collect()
    # Three lanes of 2048 rows, pinned and on the device, and the scratch memory.
    sides = 1 if adder.device.properties.maps_host_memory else 2
    assert adder.device.taken_bytes == 3 * sides * 2048 * 16 + 4096
    adder.since()
    adder.stage.run({"a": rows(2048, 1), "b": rows(2048, 1)})
    assert "allocate" not in adder.since()


def test_an_integrated_device_copies_nothing(tmp_path: Path) -> None:
    adder = load(tmp_path, ADD, add_engine(), maps_host_memory=True)
    adder.since()
    adder.stage.run({"a": rows(3, 1), "b": rows(3, 1)})
    assert not {"copy_in", "copy_out", "copy_within"} & set(adder.since())


def test_inputs_are_never_written(adder: Loaded) -> None:
    a = rows(3, 1.0)
    for _ in range(4):
        out = adder.stage.run({"a": a, "b": rows(3, 1.0)})["sum"]
        before = out.copy()
        assert adder.stage.run({"a": out, "b": rows(3, 1.0)})["sum"][0, 0] == before[0, 0] + 1
    assert np.array_equal(a, rows(3, 1.0))


def test_an_output_outlives_the_growth_of_its_buffer(adder: Loaded) -> None:
    small = adder.stage.run({"a": rows(3, 1), "b": rows(3, 1)})["sum"]
    adder.stage.run({"a": rows(2000, 5), "b": rows(2000, 5)})
    gc.collect()
    assert np.array_equal(small, rows(3, 2))


def test_inputs_of_any_layout(adder: Loaded) -> None:
    a = np.arange(24, dtype=np.float32).reshape(4, 6).T
    assert np.array_equal(adder.stage.run({"a": a, "b": a[::-1]})["sum"], a + a[::-1])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"a": rows(2, 0)}, r"missing \['b'\]"),
        ({"a": rows(2, 0), "b": rows(3, 0)}, r"'b' expected \[n, 4\] float32 with n = 2"),
        ({"a": rows(2, 0), "b": rows(2, 0).astype(np.float64)}, "float64"),
        ({"a": rows(5000, 0), "b": rows(5000, 0)}, r"\[1, 4\]..\[4096, 4\].*got \[5000, 4\]"),
    ],
)
def test_wrong_inputs(adder: Loaded, inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(BackendError, match="stage 'adder'.*" + message):
        adder.stage.run(inputs)


# ---- graphs


def test_the_second_equal_run_is_recorded_and_the_third_replayed(adder: Loaded) -> None:
    seen = []
    for value in range(5):
        adder.since()
        out = adder.stage.run({"a": rows(3, value), "b": rows(3, 1)})["sum"]
        assert np.array_equal(out, rows(3, value + 1))
        calls = adder.since()
        seen.append(("begin_capture" in calls, "graph.launch" in calls))
    assert seen == [(False, False), (True, True), (False, True), (False, True), (False, True)]
    assert adder.stage.recorded == 1
    # A replayed run is one call, and one wait.
    assert calls == ["graph.launch", "stream.synchronize"]


def test_shapes_that_take_turns_are_recorded_only_when_warm(adder: Loaded) -> None:
    for n in (3, 5, 3, 5, 3, 5):
        assert adder.stage.run({"a": rows(n, 1), "b": rows(n, 2)})["sum"][-1, -1] == 3
    assert adder.stage.recorded == 0
    for n in (3, 3, 5, 5, 3, 5):
        assert adder.stage.run({"a": rows(n, 1), "b": rows(n, 2)})["sum"][-1, -1] == 3
    assert adder.stage.recorded == 2


def test_a_grown_buffer_is_not_replayed_into(adder: Loaded) -> None:
    for n in (3, 3, 3, 2000, 3, 3, 3):
        out = adder.stage.run({"a": rows(n, n), "b": rows(n, 2)})["sum"]
        assert np.array_equal(out, rows(n, n + 2))


def test_old_recordings_are_let_go(adder: Loaded) -> None:
    for n in range(1, 60):
        for _ in range(2):
            adder.stage.run({"a": rows(n, 1), "b": rows(n, 2)})
    assert adder.stage.recorded == 32


@pytest.mark.parametrize("call", ["begin_capture", "end_capture"])
def test_what_cannot_be_recorded_runs_and_says_so_once(
    adder: Loaded, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    adder.device.fail[call] = -1
    with caplog.at_level(logging.WARNING):
        for value in range(5):
            out = adder.stage.run({"a": rows(3, value), "b": rows(3, 1)})["sum"]
            assert np.array_equal(out, rows(3, value + 1))
    assert adder.stage.recorded == 0
    (record,) = caplog.records
    assert "stage 'adder' runs without CUDA graphs" in record.message


def test_a_plugin_that_fails_only_while_recording(
    adder: Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    adder.stage.run({"a": rows(3, 0), "b": rows(3, 1)})
    adder.trt.fail["execute_async_v3"] = 1
    for value in range(4):
        out = adder.stage.run({"a": rows(3, value), "b": rows(3, 1)})["sum"]
        assert np.array_equal(out, rows(3, value + 1))
    assert adder.stage.recorded == 0 and len(caplog.records) == 1


@pytest.mark.parametrize(("capturable", "recorded"), [(True, 1), (False, 0)])
def test_rtx_is_asked_whether_it_can_be_recorded(
    tmp_path: Path, capturable: bool, recorded: int
) -> None:
    loaded = load(tmp_path, ADD, add_engine(capturable=capturable))
    for value in range(4):
        out = loaded.stage.run({"a": rows(3, value), "b": rows(3, 1)})["sum"]
        assert np.array_equal(out, rows(3, value + 1))
    assert loaded.stage.recorded == recorded


RESHAPE = StagePorts(
    "filler",
    (Port("x", "float32", (4,)), Port("count", "int64", (1,))),
    (Port("y", "float32", (4,)),),
)


def test_values_that_the_host_reads_are_part_of_a_recording(tmp_path: Path) -> None:
    engine = Engine(
        inputs={"x": ("FLOAT", (4,)), "count": ("INT64", (1,))},
        outputs={"y": ("FLOAT", (4,))},
        function=lambda x, count: {"y": x * np.float32(count[0])},
        on_host=("count",),
    )
    loaded = load(tmp_path, RESHAPE, engine)
    x = np.arange(4, dtype=np.float32)
    for count in (2, 2, 2, 3, 3, 2, 3):
        out = loaded.stage.run({"x": x, "count": np.array([count], np.int64)})["y"]
        assert np.array_equal(out, x * count)
    assert loaded.stage.recorded == 2


# ---- profiles


def test_the_tightest_profile_that_fits_is_taken(tmp_path: Path) -> None:
    long, short = ((1, 4), (64, 4), (512, 4)), ((1, 4), (1, 4), (5, 4))
    engine = add_engine(profiles=[{"a": long, "b": long}, {"a": short, "b": short}])
    loaded = load(tmp_path, ADD, engine)
    for n in (100, 1, 5, 6, 1):
        assert loaded.stage.run({"a": rows(n, 1), "b": rows(n, 2)})["sum"][-1, -1] == 3
    # The contexts share their scratch memory.
    assert sorted(loaded.stage._contexts) == [0, 1]
    assert loaded.device.calls.count("allocate") == 4
    with pytest.raises(BackendError, match=r"\[1, 4\]..\[512, 4\] or \[1, 4\]..\[5, 4\]"):
        loaded.stage.run({"a": rows(513, 1), "b": rows(513, 1)})


def test_shapes_that_fit_no_profile_together(tmp_path: Path) -> None:
    ports = StagePorts(
        "two", (Port("a", "float32", ("n",)), Port("b", "float32", ("m",))),
        (Port("y", "float32", (1,)),),
    )  # fmt: skip
    few, many = ((1,), (1,), (4,)), ((8,), (8,), (9,))
    engine = Engine(
        inputs={"a": ("FLOAT", (-1,)), "b": ("FLOAT", (-1,))},
        outputs={"y": ("FLOAT", (1,))},
        function=lambda a, b: {"y": (a.sum() + b.sum()).reshape(1)},
        profiles=[{"a": few, "b": many}, {"a": many, "b": few}],
    )
    loaded = load(tmp_path, ports, engine)
    one, eight = np.ones(1, np.float32), np.ones(8, np.float32)
    assert loaded.stage.run({"a": one, "b": eight})["y"] == 9
    assert loaded.stage.run({"a": eight, "b": one})["y"] == 9
    with pytest.raises(BackendError, match="no profile of this engine holds the shapes"):
        loaded.stage.run({"a": one, "b": one})


MASKS = StagePorts(
    "det_masks", (Port("map", "float32", (1, "H/4", "W/4")),),
    (Port("out", "float32", (1, "H", "W")),),
)  # fmt: skip


def test_an_output_shape_that_only_the_engine_knows(tmp_path: Path) -> None:
    limits = ((1, 1, 1), (1, 4, 4), (1, 9, 9))
    engine = Engine(
        inputs={"map": ("FLOAT", (1, -1, -1))},
        outputs={"out": ("FLOAT", (1, -1, -1))},
        function=lambda map: {"out": map.repeat(4, 1).repeat(4, 2)},
        profiles=[{"map": limits}],
    )
    loaded = load(tmp_path, MASKS, engine)
    for _ in range(3):
        assert loaded.stage.run({"map": np.ones((1, 2, 3), np.float32)})["out"].shape == (1, 8, 12)
    loaded.trt.sizes_depend_on_values = True
    with pytest.raises(BackendError, match="Sizes that depend on values are not for an engine"):
        loaded.stage.run({"map": np.ones((1, 3, 3), np.float32)})


# ---- outputs that stay on the device


def test_a_chain_stays_on_the_device(tmp_path: Path) -> None:
    adder = load(tmp_path, ADD, add_engine())
    first = adder.stage.run_kept({"a": rows(3, 1), "b": rows(3, 2)})["sum"]
    assert isinstance(first, DeviceArray)
    adder.since()
    second = adder.stage.run_kept({"a": first, "b": first})["sum"]
    assert not {"copy_in", "copy_out", "copy_within", "stream.synchronize"} & set(adder.since())
    assert np.array_equal(np.asarray(second), rows(3, 6))
    # No later run touches what was kept.
    adder.stage.run({"a": rows(3, 9), "b": rows(3, 9)})
    adder.stage.run_kept({"a": rows(3, 9), "b": rows(3, 9)})
    assert np.array_equal(np.asarray(first), rows(3, 3))
    assert np.array_equal(np.asarray(second), rows(3, 6))
    assert np.array_equal(adder.stage.run({"a": first, "b": second})["sum"], rows(3, 9))


def test_staging_waits_for_a_run_that_nobody_waited_for(adder: Loaded) -> None:
    kept = [adder.stage.run_kept({"a": rows(3, v), "b": rows(3, v)})["sum"] for v in range(4)]
    assert [np.asarray(array)[0, 0] for array in kept] == [0, 2, 4, 6]


def test_dropped_results_are_reused_and_recorded(tmp_path: Path) -> None:
    adder = load(tmp_path, ADD, add_engine())
    for value in range(5):
        kept = adder.stage.run_kept({"a": rows(3, value), "b": rows(3, 1)})["sum"]
        assert np.array_equal(np.asarray(kept), rows(3, value + 1))
        taken = adder.device.taken_bytes
        del kept
    assert adder.stage.recorded == 1 and adder.device.taken_bytes == taken


def test_an_input_dropped_at_once_is_still_read(tmp_path: Path) -> None:
    adder = load(tmp_path, ADD, add_engine())
    kept = adder.stage.run_kept({
        "a": adder.stage.run_kept({"a": rows(3, 1), "b": rows(3, 2)})["sum"], "b": rows(3, 4)
    })["sum"]  # fmt: skip
    adder.stage.run_kept({"a": rows(3, 50), "b": rows(3, 50)})
    assert np.array_equal(np.asarray(kept), rows(3, 7))


def test_memory_that_another_library_has_seen_is_not_reused(tmp_path: Path) -> None:
    adder = load(tmp_path, ADD, add_engine())
    for _ in range(3):
        kept: Any = adder.stage.run_kept({"a": rows(3, 1), "b": rows(3, 2)})["sum"]
        address = kept.__cuda_array_interface__["data"][0]
        del kept
        gc.collect()
        with pytest.raises(AssertionError, match="not taken"):
            adder.device.bytes_at(address, 1, "device")


class Foreign:
    def __init__(self, device: FakeDevice, values: np.ndarray, offset: int = 0) -> None:
        memory = aligned(values.nbytes + offset)
        memory[offset:] = values.reshape(-1).view(np.uint8)
        device.adopt(memory)
        self.__cuda_array_interface__ = {
            "shape": values.shape, "typestr": values.dtype.str, "version": 2,
            "data": (memory[offset:].ctypes.data, False), "memory": memory,
        }  # fmt: skip


@pytest.mark.parametrize(("offset", "copies"), [(0, 0), (16, 1)])
def test_foreign_arrays_are_read_where_they_are(tmp_path: Path, offset: int, copies: int) -> None:
    adder = load(tmp_path, ADD, add_engine())
    foreign: Any = Foreign(adder.device, rows(3, 5), offset)
    out = adder.stage.run({"a": foreign, "b": rows(3, 1)})["sum"]
    assert np.array_equal(out, rows(3, 6))
    assert adder.since().count("copy_within") == copies, "TensorRT wants 256-byte addresses"
    wrong: Any = Foreign(adder.device, rows(3, 5).astype(np.float64))
    with pytest.raises(BackendError, match=r"stage 'adder': input 'a'.*float64"):
        adder.stage.run({"a": wrong, "b": rows(3, 1)})


def test_a_recording_is_not_replayed_on_another_foreign_array(tmp_path: Path) -> None:
    adder = load(tmp_path, ADD, add_engine())
    foreign: list[Any] = [Foreign(adder.device, rows(3, value), 16) for value in range(3)]
    for index in (0, 0, 0, 1, 2, 0):
        out = adder.stage.run({"a": foreign[index], "b": rows(3, 1)})["sum"]
        assert np.array_equal(out, rows(3, index + 1))


@pytest.mark.parametrize("fails", [False, True])
def test_a_foreign_array_is_held_until_it_was_read(tmp_path: Path, fails: bool) -> None:
    """Its library would give the memory to somebody else, on another stream."""
    adder = load(tmp_path, ADD, add_engine())
    foreign: Any = Foreign(adder.device, rows(3, 5), 16 if fails else 0)
    memory = foreign.__cuda_array_interface__["memory"]
    weakref.finalize(foreign, memory.fill, 0)
    adder.trt.fail["execute_async_v3"] = int(fails)
    given = {"a": foreign, "b": rows(3, 1)}
    del foreign
    if fails:
        with pytest.raises(BackendError, match="planned failure of a layer"):
            adder.stage.run_kept(given)
        assert not any(stream.pending for stream in adder.device.streams.values())
        return
    kept = adder.stage.run_kept(given)["sum"]
    given.clear()
    gc.collect()
    assert np.array_equal(np.asarray(kept), rows(3, 6))


def test_arrays_of_another_backend_on_the_same_device(tmp_path: Path) -> None:
    one = load(tmp_path, ADD, add_engine())
    trt = FakeTensorRT(one.device, {PLAN: add_engine()})
    backend = TensorRTBackend("tensorrt", load_module=trt.load, open_device=lambda: one.device)
    options = StageOptions(sha256=hashlib.sha256(PLAN).hexdigest())
    other = backend.load_stage(tmp_path / "stage.engine", ADD, options)
    kept = one.stage.run_kept({"a": rows(3, 1), "b": rows(3, 2)})["sum"]
    assert np.array_equal(other.run({"a": kept, "b": kept})["sum"], rows(3, 6))


# ---- every failure


def scenario(loaded: Loaded) -> None:
    """A little of everything; asserts its numbers."""
    for n in (3, 3, 3, 600):
        out = loaded.stage.run({"a": rows(n, n), "b": rows(n, 1)})["sum"]
        assert np.array_equal(out, rows(n, n + 1))
    kept = loaded.stage.run_kept({"a": rows(3, 1), "b": rows(3, 1)})["sum"]
    foreign: Any = Foreign(loaded.device, rows(3, 7), 16)
    out = loaded.stage.run({"a": kept, "b": foreign})["sum"]
    assert np.array_equal(out, rows(3, 9))


DEVICE_CALLS = (
    "allocate", "allocate_host", "copy_in", "copy_out", "copy_within", "event.record",
    "event.synchronize", "stream.synchronize", "graph.launch",
)  # fmt: skip
TENSORRT_CALLS = (
    "create_execution_context", "set_optimization_profile_async", "set_input_shape",
    "set_tensor_address", "execute_async_v3",
)  # fmt: skip


def test_the_scenario_makes_every_call(tmp_path: Path) -> None:
    loaded = load(tmp_path, ADD, add_engine())
    scenario(loaded)
    made = set(loaded.device.calls) - {"new_stream", "new_event", "begin_capture", "end_capture"}
    assert made == set(DEVICE_CALLS)


@pytest.mark.parametrize("call", DEVICE_CALLS + TENSORRT_CALLS)
def test_every_failure_is_told_and_survived(tmp_path: Path, call: str) -> None:
    """Each call fails once, at its first, second, ... use; afterwards everything works again."""
    failures = 0
    for at in range(1, 40):
        loaded = load(tmp_path, ADD, add_engine())
        broken: Any = loaded.trt if call in TENSORRT_CALLS else loaded.device
        original: Callable[[str], Any] = broken.planned if broken is loaded.trt else broken.call
        count = 0

        def planned(name: str, original: Any = original, broken: Any = broken, at: int = at) -> Any:
            nonlocal count
            count += name == call
            if name == call and count == at:
                broken.fail[call] = 1
            return original(name)

        setattr(broken, "planned" if broken is loaded.trt else "call", planned)
        try:
            scenario(loaded)
        except BackendError as e:
            failures += 1
            assert "adder" in str(e) or "failed as planned" in str(e)
        if count < at:
            break
        scenario(loaded)
    assert failures, f"{call} never failed"
