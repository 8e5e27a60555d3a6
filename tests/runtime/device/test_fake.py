"""The fake refuses what a real device would punish: a test on it is worth that much."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from tests.runtime.device.fake import FakeDevice
from visionllm_edge.runtime.errors import BackendError


def test_nothing_happens_before_somebody_waits() -> None:
    device = FakeDevice()
    stream, host = device.new_stream(), np.arange(8, dtype=np.uint8)
    buffer = device.allocate(8)
    device.copy_in(buffer.address, host.ctypes.data, 8, stream)
    host[:] = 9
    assert buffer.memory[0] == 0x7F
    stream.synchronize()
    # The copy read what stood there when it ran, not when it was asked for.
    assert buffer.memory[0] == 9


def test_freed_memory_is_refused() -> None:
    device = FakeDevice()
    stream, buffer = device.new_stream(), device.allocate(8)
    address = buffer.address
    device.fill(address, 1, 8, stream)
    del buffer
    gc.collect()
    with pytest.raises(AssertionError, match="not taken"):
        device.copy_within(address, address, 8, stream)


def test_the_wrong_side_is_refused() -> None:
    device = FakeDevice()
    stream, buffer, host = device.new_stream(), device.allocate(8), np.zeros(8, np.uint8)
    pinned = device.allocate_host(8, mapped=False)
    with pytest.raises(AssertionError, match="host memory expected"):
        device.copy_in(buffer.address, buffer.address, 8, stream)
    with pytest.raises(AssertionError, match="device memory expected"):
        device.copy_in(pinned.host_address, host.ctypes.data, 8, stream)
    with pytest.raises(AssertionError, match="not taken"):
        device.copy_in(buffer.address, host.ctypes.data, 9, stream)


def test_recorded_work_runs_when_launched_and_not_before() -> None:
    device = FakeDevice()
    stream, buffer = device.new_stream(), device.allocate(1)
    device.begin_capture(stream)
    device.fill(buffer.address, 5, 1, stream)
    with pytest.raises(AssertionError, match="recording"):
        device.allocate(1)
    graph = device.end_capture(stream)
    stream.synchronize()
    assert buffer.memory[0] == 0x7F
    graph.launch(stream)
    stream.synchronize()
    assert buffer.memory[0] == 5


def test_planned_failures() -> None:
    device = FakeDevice()
    device.fail["allocate"] = 1
    with pytest.raises(BackendError, match="allocate failed"):
        device.allocate(1)
    assert device.allocate(1).nbytes == 1
