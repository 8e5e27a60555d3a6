"""Caches of the TensorRT backend on the fake device: aliased, in two buffers, after failures."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.backends.fake_tensorrt import Engine
from tests.runtime.backends.loaded_engine import ADD, PLAN, Loaded, add_engine, load
from visionllm_edge.runtime.backends.tensorrt_stage import DeviceCache
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.ports import Port, StagePorts

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


def test_a_stage_without_a_cache(tmp_path: Path) -> None:
    adder = load(tmp_path, ADD, add_engine())
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
