"""Stages of one TensorRT backend side by side: nothing shared, and results handed over in order.

The fake device does its work when somebody waits, so an order that nobody asked for shows.
"""

from __future__ import annotations

import gc
import hashlib
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.backends.fake_tensorrt import Engine, FakeDevice, FakeTensorRT
from tests.runtime.backends.loaded_engine import ADD, add_engine, rows
from visionllm_edge.runtime.backends import StageOptions
from visionllm_edge.runtime.backends.tensorrt import TensorRTBackend
from visionllm_edge.runtime.backends.tensorrt_stage import Messages, TensorRTStage
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.ports import StagePorts

PLANS = (b"the backbone", b"the encoder")


class Pair:
    """Two stages of one backend."""

    def __init__(self, folder: Path, *engines: Engine) -> None:
        self.device = FakeDevice()
        self.trt = FakeTensorRT(self.device, dict(zip(PLANS, engines, strict=True)))
        backend = TensorRTBackend(
            "tensorrt", load_module=self.trt.load, open_device=lambda: self.device
        )
        self.stages: list[TensorRTStage] = []
        for index, plan in enumerate(PLANS):
            path = folder / f"{index}.engine"
            path.write_bytes(plan)
            options = StageOptions(sha256=hashlib.sha256(plan).hexdigest())
            ports = StagePorts(f"stage{index}", ADD.inputs, ADD.outputs)
            self.stages.append(backend.load_stage(path, ports, options))


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path, add_engine(), add_engine())


def in_a_thread(call: Callable[[], Any]) -> Any:
    out: list[Any] = []
    thread = threading.Thread(target=lambda: out.append(call()))
    thread.start()
    thread.join()
    return out[0]


def test_stages_share_neither_stream_nor_memory(pair: Pair) -> None:
    for stage in pair.stages:
        stage.run({"a": rows(3, 1), "b": rows(3, 1)})
        stage.run_kept({"a": rows(3, 1), "b": rows(3, 1)})
    one, other = pair.stages
    assert one._stream.handle != other._stream.handle
    assert one._scratch is not None and other._scratch is not None
    assert one._scratch.address != other._scratch.address
    assert one._pool is not other._pool and one._done is not other._done
    lanes = [*one._inputs.values(), *one._outputs.values()]
    theirs = [*other._inputs.values(), *other._outputs.values()]
    assert not {lane.host_address for lane in lanes} & {lane.host_address for lane in theirs}
    assert not {lane.address for lane in lanes} & {lane.address for lane in theirs}


def test_what_one_leaves_on_the_device_the_other_waits_for(pair: Pair) -> None:
    backbone, encoder = pair.stages
    for value in range(1, 6):  # recorded and replayed, too
        given = {"a": rows(3, value), "b": rows(3, 10)}
        maps = in_a_thread(partial(backbone.run_kept, given))
        assert backbone._stream.pending, "nobody has waited for the device yet"  # type: ignore[attr-defined]
        out = encoder.run({"a": maps["sum"], "b": rows(3, 100)})["sum"]
        assert np.array_equal(out, rows(3, 110 + value))
    assert backbone.recorded and encoder.recorded


def test_dropped_maps_are_not_overwritten_before_they_were_read(pair: Pair) -> None:
    """The encoder has only been asked; the next picture's backbone must not take its input."""
    backbone, encoder = pair.stages
    kept = encoder.run_kept(
        {"a": backbone.run_kept({"a": rows(3, 1), "b": rows(3, 10)})["sum"], "b": rows(3, 100)}
    )["sum"]
    gc.collect()
    again = backbone.run_kept({"a": rows(3, 2), "b": rows(3, 20)})["sum"]
    backbone._stream.synchronize()
    assert np.array_equal(np.asarray(kept), rows(3, 111))
    assert np.array_equal(np.asarray(again), rows(3, 22))


def test_a_recording_of_one_stage_takes_in_nothing_of_another(pair: Pair) -> None:
    """While one thread records its stage, another runs its own."""
    decoder, backbone = pair.stages
    given = {"a": rows(3, 1), "b": rows(3, 1)}
    decoder.run(given)
    backbone.run(given)
    begin, seen = pair.device.begin_capture, []

    def begin_and_let_the_other_run(stream: Any) -> None:
        begin(stream)
        if stream is decoder._stream:
            seen.append(
                in_a_thread(lambda: backbone.run({"a": rows(4, 5), "b": rows(4, 6)})["sum"])
            )

    pair.device._not_recording = lambda: None  # type: ignore[method-assign]  # CUDA: by thread
    pair.device.begin_capture = begin_and_let_the_other_run  # type: ignore[method-assign]
    decoder.run(given)
    assert np.array_equal(seen[0], rows(4, 11))
    for value in range(3):
        assert decoder.run({"a": rows(3, value), "b": rows(3, 1)})["sum"][0, 0] == value + 1
    assert decoder.recorded == 1
    # A replay that had swallowed the other's run would run it again.
    assert np.array_equal(seen[0], rows(4, 11))


def test_a_stages_times_are_its_own_beside_another(pair: Pair) -> None:
    """A run takes 100 ms on the fake device, a copy 1 ms."""
    backbone, encoder = pair.stages
    for stage in pair.stages:
        stage.time_device()
    times = []
    for _ in range(4):  # recorded and replayed, too
        given = {"a": rows(3, 1), "b": rows(3, 10)}
        maps = in_a_thread(partial(backbone.run_kept, given))
        seen = backbone.device_times_ms()
        # The encoder's stream waits for the backbone's run; that is none of its own time.
        encoder.run({"a": maps["sum"], "b": rows(3, 100)})
        times.append((seen, encoder.device_times_ms()))
    assert backbone.recorded and encoder.recorded
    for one, other in times:
        assert one is not None and other is not None
        assert (one(), other()) == ((100.0, 2.0), (100.0, 2.0))
    # Both are asked when both are under way: neither's marks are set by the other's stream.
    in_a_thread(partial(backbone.run_kept, given))
    in_a_thread(partial(encoder.run_kept, given))
    first, second = (stage.device_times_ms() for stage in pair.stages)
    assert first is not None and second is not None
    assert second() == (100.0, 2.0) and backbone._stream.pending  # type: ignore[attr-defined]
    assert first() == (100.0, 2.0)


def test_a_failure_tells_its_own_threads_messages(pair: Pair) -> None:
    one, other = pair.stages
    given = {"a": rows(3, 1), "b": rows(3, 1)}
    one.run(given)

    def fail() -> str:
        pair.trt.fail["execute_async_v3"] = 1
        with pytest.raises(BackendError) as caught:
            other.run(given)
        return str(caught.value)

    assert "planned failure of a layer" in in_a_thread(fail)
    pair.trt.fail["set_tensor_address"] = 1
    with pytest.raises(BackendError, match="it gave no reason"):
        one.run({"a": rows(5, 1), "b": rows(5, 1)})


def test_messages_are_few_and_by_thread() -> None:
    messages = Messages()
    for number in range(20):
        messages.add(f"line {number}")
    assert str(messages).startswith("line 12; ") and str(messages).endswith("; line 19")
    assert messages and not in_a_thread(lambda: bool(messages))
    messages.clear()
    assert not messages and str(messages) == ""
