"""The TensorRT backend on the fake device: buffers, graphs, caches, kept outputs, every failure."""

from __future__ import annotations

import gc
import hashlib
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.runtime.backends.fake_tensorrt import Engine, FakeDevice, FakeTensorRT
from tests.runtime.device.fake import aligned
from visionllm_edge.runtime.backends import StageOptions, load_backend
from visionllm_edge.runtime.backends.tensorrt import TensorRTBackend
from visionllm_edge.runtime.backends.tensorrt_stage import DeviceCache, TensorRTStage
from visionllm_edge.runtime.device import DeviceArray
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.manifest import FileEntry
from visionllm_edge.runtime.ports import Port, StagePorts

PLAN = b"an engine"


class Loaded:
    """A stage with what it runs on."""

    def __init__(self, stage: TensorRTStage, device: FakeDevice, trt: FakeTensorRT) -> None:
        self.stage, self.device, self.trt = stage, device, trt

    def since(self) -> list[str]:
        """Device calls since the last time."""
        calls = [c for c in self.device.calls if c not in ("event.synchronize", "new_event")]
        self.device.calls.clear()
        return calls


def load(folder: Path, ports: StagePorts, engine: Engine, **properties: Any) -> Loaded:
    device = FakeDevice(**properties)
    trt = FakeTensorRT(device, {PLAN: engine})
    backend = TensorRTBackend("tensorrt", load_module=trt.load, open_device=lambda: device)
    path = folder / "stage.engine"
    path.write_bytes(PLAN)
    options = StageOptions(sha256=hashlib.sha256(PLAN).hexdigest())
    return Loaded(backend.load_stage(path, ports, options), device, trt)


ADD = StagePorts(
    "adder",
    (Port("a", "float32", ("n", 4)), Port("b", "float32", ("n", 4))),
    (Port("sum", "float32", ("n", 4)),),
)


def add_engine(**changes: Any) -> Engine:
    wide = ((1, 4), (8, 4), (4096, 4))
    engine = Engine(
        inputs={"a": ("FLOAT", (-1, 4)), "b": ("FLOAT", (-1, 4))},
        outputs={"sum": ("FLOAT", (-1, 4))},
        function=lambda a, b: {"sum": a + b},
        profiles=[{"a": wide, "b": wide}],
    )
    for name, value in changes.items():
        setattr(engine, name, value)
    return engine


@pytest.fixture(params=["discrete", "integrated"])
def adder(request: pytest.FixtureRequest, tmp_path: Path) -> Loaded:
    return load(tmp_path, ADD, add_engine(), maps_host_memory=request.param == "integrated")


def rows(n: int, value: float) -> np.ndarray:
    return np.full((n, 4), value, dtype=np.float32)


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


# ---- caches

CAPACITY, DH = 16, 4
DECODER = StagePorts(
    "llm_decoder",
    (
        Port("rows", "float32", (1, "s", DH)),
        Port("past_length", "int64", (1,)),
        Port("past_key_values.0.key", "float16", (1, 1, "C", DH)),
        Port("past_key_values.0.value", "bfloat16", (1, 1, "C", DH)),
    ),
    (
        Port("total", "float32", (DH,)),
        Port("present.0.key", "float16", (1, 1, "C", DH)),
        Port("present.0.value", "bfloat16", (1, 1, "C", DH)),
    ),
)
NAMES = {"key": "past_key_values.0.key", "value": "past_key_values.0.value"}


def scatter(**given: np.ndarray) -> dict[str, np.ndarray]:
    """Writes its rows at past_length as keys, their number as the bits of values; sums keys."""
    key, value = given[NAMES["key"]].copy(), given[NAMES["value"]].copy()
    start = int(given["past_length"][0])
    stop = start + given["rows"].shape[1]
    key[0, 0, start:stop] = given["rows"][0].astype(np.float16)
    value[0, 0, start:stop] = np.arange(start, stop)[:, None]
    total = key[0, 0, :stop].astype(np.float32).sum(axis=0)
    return {"total": total, "present.0.key": key, "present.0.value": value}


ALIASES = {"present.0.key": NAMES["key"], "present.0.value": NAMES["value"]}


def decoder_engine(aliases: dict[str, str] | None, capacity: int = CAPACITY) -> Engine:
    cache = {"key": ("HALF", (1, 1, capacity, DH)), "value": ("BF16", (1, 1, capacity, DH))}
    decode, prefill = ((1, 1, DH), (1, 1, DH), (1, 2, DH)), ((1, 1, DH), (1, 8, DH), (1, 16, DH))
    return Engine(
        inputs={
            "rows": ("FLOAT", (1, -1, DH)),
            "past_length": ("INT64", (1,)),
            **{NAMES[part]: about for part, about in cache.items()},
        },
        outputs={
            "total": ("FLOAT", (DH,)),
            **{f"present.0.{part}": about for part, about in cache.items()},
        },
        function=scatter,
        profiles=[{"rows": prefill}, {"rows": decode}],
        aliases=aliases,
    )


@pytest.fixture(params=["aliased", "two buffers", "integrated"])
def decoder(request: pytest.FixtureRequest, tmp_path: Path) -> Loaded:
    aliases = ALIASES if request.param == "aliased" else None
    return load(
        tmp_path, DECODER, decoder_engine(aliases), maps_host_memory=request.param == "integrated"
    )


def step(past: int, new: np.ndarray) -> dict[str, np.ndarray]:
    return {"rows": new[None], "past_length": np.array([past], np.int64)}


def new_rows(s: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 9, (s, DH)).astype(np.float32)


def test_a_conversation(decoder: Loaded) -> None:
    cache = decoder.stage.new_cache(CAPACITY)
    aliased = decoder.trt.engines[PLAN].aliases is not None
    assert cache.capacity == CAPACITY
    assert cache.nbytes == (2 if aliased else 4) * CAPACITY * DH * 2
    expected = np.zeros((CAPACITY, DH), np.float32)
    length = 0
    for turn, s in enumerate((5, 1, 1, 1, 1, 1, 2)):
        new = new_rows(s, turn)
        expected[length : length + s] = new
        out = decoder.stage.run_with_cache(step(length, new), cache)
        length += s
        assert list(out) == ["total"]
        assert np.array_equal(out["total"], expected.sum(axis=0))
    assert np.array_equal(cache.array(NAMES["key"])[0, 0], expected)
    bits = cache.array(NAMES["value"])
    assert bits.dtype == np.uint16 and bits[0, 0, :length, 0].tolist() == list(range(length))
    # Decoding was recorded: once where the buffers are one, twice where they take turns.
    assert decoder.stage.recorded == (1 if aliased else 2)
    # Back to the beginning, over what stands there.
    out = decoder.stage.run_with_cache(step(0, new_rows(3, 77)), cache)
    assert np.array_equal(out["total"], new_rows(3, 77).sum(axis=0))


def test_conversations_take_turns(decoder: Loaded) -> None:
    caches = [decoder.stage.new_cache(CAPACITY) for _ in range(3)]
    sums = [np.zeros(DH, np.float32) for _ in caches]
    for turn in range(6):
        for index, cache in enumerate(caches):
            new = new_rows(1, 10 * turn + index)
            sums[index] += new[0]
            out = decoder.stage.run_with_cache(step(turn, new), cache)
            assert np.array_equal(out["total"], sums[index])


@pytest.mark.parametrize("where", ["execute_async_v3", "stream.synchronize", "copy_in"])
def test_a_failed_step_leaves_the_rows_before_it(decoder: Loaded, where: str) -> None:
    if where == "copy_in" and decoder.device.properties.maps_host_memory:
        where = "execute_async_v3"
    cache = decoder.stage.new_cache(CAPACITY)
    decoder.stage.run_with_cache(step(0, new_rows(4, 1)), cache)
    broken = decoder.trt if where == "execute_async_v3" else decoder.device
    broken.fail[where] = 1
    with pytest.raises(BackendError):
        decoder.stage.run_with_cache(step(4, new_rows(3, 2)), cache)
    out = decoder.stage.run_with_cache(step(4, new_rows(1, 3)), cache)
    assert np.array_equal(out["total"], new_rows(4, 1).sum(axis=0) + new_rows(1, 3)[0])


def test_a_cache_given_as_plain_inputs(decoder: Loaded) -> None:
    past = {NAMES["key"]: np.ones((1, 1, CAPACITY, DH), np.float16),
            NAMES["value"]: np.zeros((1, 1, CAPACITY, DH), np.uint16)}  # fmt: skip
    for _ in range(3):
        out = decoder.stage.run({**step(2, new_rows(1, 5)), **past})
        assert np.array_equal(out["total"], 2 + new_rows(1, 5)[0])
        assert np.array_equal(out["present.0.key"][0, 0, 2], new_rows(1, 5)[0])
        assert out["present.0.value"][0, 0, 2, 0] == 2
    assert (past[NAMES["key"]] == 1).all()
    kept = decoder.stage.run_kept({**step(2, new_rows(1, 5)), **past})
    again = decoder.stage.run(
        {**step(2, new_rows(1, 6)), **past, NAMES["key"]: kept["present.0.key"]}
    )
    assert np.array_equal(again["total"], 2 + new_rows(1, 6)[0])
    assert np.array_equal(np.asarray(kept["present.0.key"])[0, 0, 2], new_rows(1, 5)[0])


def test_caches_that_do_not_fit(decoder: Loaded, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="capacity of 16 rows, got 32"):
        decoder.stage.new_cache(32)
    (tmp_path / "other").mkdir()
    other = load(tmp_path / "other", DECODER, decoder_engine(None))
    with pytest.raises(BackendError, match="was not made by new_cache"):
        decoder.stage.run_with_cache(step(0, new_rows(1, 1)), other.stage.new_cache(CAPACITY))
    cache = decoder.stage.new_cache(CAPACITY)
    given = {**step(0, new_rows(1, 1)), NAMES["key"]: cache.array(NAMES["key"])}
    with pytest.raises(BackendError, match="are part of the cache"):
        decoder.stage.run_with_cache(given, cache)


def test_an_alias_to_something_else_is_refused(tmp_path: Path) -> None:
    crossed = {"present.0.key": NAMES["value"]}
    loaded = load(tmp_path, DECODER, decoder_engine(crossed))
    with pytest.raises(BackendError, match=r"'present\.0\.value' expected to share the memory"):
        loaded.stage.new_cache(CAPACITY)


def test_a_stage_without_a_cache(adder: Loaded) -> None:
    with pytest.raises(BackendError, match="no cache"):
        adder.stage.new_cache(4)


def test_a_dropped_cache_is_freed(decoder: Loaded) -> None:
    before = decoder.device.taken_bytes
    cache = decoder.stage.new_cache(CAPACITY)
    assert decoder.device.taken_bytes == before + cache.nbytes
    assert isinstance(cache, DeviceCache)
    del cache
    gc.collect()
    assert decoder.device.taken_bytes == before


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


# ---- loading


def test_both_names_are_backends() -> None:
    assert load_backend("tensorrt").name == "tensorrt"
    assert load_backend("tensorrt_rtx").name == "tensorrt_rtx"


def bundle(folder: Path, files: dict[str, bytes], created_by: dict[str, str] | None = None) -> Any:
    entries = {}
    for relative, content in files.items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        entries[relative] = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    manifest = SimpleNamespace(files=entries, created_by=created_by or {})
    return SimpleNamespace(root=folder, manifest=manifest, file=lambda name: folder / name)


def backend_of(engines: dict[bytes, Engine], **properties: Any) -> tuple[Any, FakeTensorRT]:
    device = FakeDevice(**properties)
    trt = FakeTensorRT(device, engines)
    return TensorRTBackend("tensorrt", load_module=trt.load, open_device=lambda: device), trt


ENGINE = "engines/adder.engine"


def test_an_engine_of_a_bundle(tmp_path: Path) -> None:
    made = bundle(tmp_path, {ENGINE: PLAN})
    backend, trt = backend_of({PLAN: add_engine()})
    stage = backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
    assert stage.ports is ADD
    assert stage.run({"a": rows(1, 1), "b": rows(1, 1)})["sum"][0, 0] == 2
    assert trt.host_code_allowed is False


def test_an_engine_that_nobody_vouches_for(tmp_path: Path) -> None:
    backend, trt = backend_of({PLAN: add_engine()})
    made = bundle(tmp_path / "bundle", {ENGINE: PLAN})
    stray = tmp_path / "stray.engine"
    stray.write_bytes(PLAN)
    for options in (StageOptions(), StageOptions(bundle=made)):
        with pytest.raises(BackendError, match=r"'stray\.engine' is native code.*not\. Load it"):
            backend.load_stage(stray, ADD, options)
    (tmp_path / "bundle" / "engines" / "extra.engine").write_bytes(PLAN)
    with pytest.raises(BackendError, match="native code"):
        extra = tmp_path / "bundle" / "engines" / "extra.engine"
        backend.load_stage(extra, ADD, StageOptions(bundle=made))
    # TensorRT has seen none of them.
    assert trt.host_code_allowed is None


def test_a_changed_engine(tmp_path: Path) -> None:
    made = bundle(tmp_path, {ENGINE: PLAN})
    (tmp_path / ENGINE).write_bytes(PLAN + b"!")
    backend, _ = backend_of({PLAN + b"!": add_engine()})
    with pytest.raises(BackendError, match=r"'adder\.engine' is changed"):
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
    (tmp_path / ENGINE).unlink()
    with pytest.raises(BackendError, match="cannot be read"):
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))


def test_an_engine_of_another_version(tmp_path: Path) -> None:
    made = bundle(tmp_path, {ENGINE: b"older"}, {"tensorrt": "10.1.0"})
    backend, _ = backend_of({})
    with pytest.raises(BackendError) as refusal:
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
    for part in (
        "stage 'adder': TensorRT 10.3.0 cannot load 'adder.engine'",
        "(the plan was made by another version)", "built with 10.1.0", "runtime is 10.3.0",
        "Fake GPU (sm 89)", "build the bundle on this device",
    ):  # fmt: skip
        assert part in str(refusal.value)


def changed_end(**change: Any) -> dict[str, Any]:
    return {"inputs": {"a": ("FLOAT", (-1, 4)), "b": ("FLOAT", (-1, 4))} | change}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (changed_end(c=("FLOAT", (1,))), r"names inputs \['a', 'b'\], the engine has"),
        (changed_end(a=("HALF", (-1, 4))), r"says input a \[n, 4\] float32, .* float16"),
        (changed_end(a=("FP8", (-1, 4))), "FP8"),
        (changed_end(a=("FLOAT", (-1, 5))), r"the engine has \[-1, 5\]"),
        (changed_end(a=("FLOAT", (-1,))), r"the engine has \[-1\]"),
        (changed_end(a=("FLOAT", (2, 4)), b=("FLOAT", (3, 4))), r"input b .* \[3, 4\]"),
        ({"outputs": {"total": ("FLOAT", (-1, 4))}}, "names outputs"),
        ({"layouts": {"a": "CHW32"}}, "layout LINEAR, the engine has CHW32"),
    ],
)
def test_a_manifest_that_does_not_fit(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackendError, match="stage 'adder'.*" + message):
        load(tmp_path, ADD, add_engine(**changes))


def test_plugin_libraries_of_the_bundle(tmp_path: Path) -> None:
    library = "plugins/libvisionllm.so"
    made = bundle(tmp_path, {ENGINE: PLAN, library: b"elf"})
    backend, trt = backend_of({PLAN: add_engine()})
    for _ in range(2):
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
    assert trt.libraries == [str(tmp_path / library)]
    backend, trt = backend_of({PLAN: add_engine()})
    trt.fail["load_library"] = 1
    with pytest.raises(BackendError, match=r"'libvisionllm\.so': TensorRT 10\.3\.0.*wrong ABI"):
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
    (tmp_path / library).write_bytes(b"evil")
    backend, trt = backend_of({PLAN: add_engine()})
    with pytest.raises(BackendError, match="is changed"):
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
    assert trt.libraries == []


def test_kernels_of_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from visionllm_edge.plugins.tensorrt_glue import python_plugin

    given: list[object] = []
    monkeypatch.setattr(python_plugin, "register", lambda trt, *, kernels: given.append(kernels))
    kernels = {"plugins/Op.sm_89.cubin": b"ada", "plugins/Op.sm_87.cubin": b"orin"}
    made = bundle(tmp_path, {ENGINE: PLAN, **kernels})
    backend, _ = backend_of({PLAN: add_engine()})
    for _ in range(2):
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
    assert given == [{"Op": b"ada"}]
    backend, _ = backend_of({PLAN: add_engine()}, sm=90, name="H100")
    with pytest.raises(BackendError, match=r"'Op' has kernels for sm 87, 89.*H100 with sm 90"):
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
