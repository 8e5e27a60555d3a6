"""Arrays in and out, by DLPack and the CUDA array interface: fake device, real consumers."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.dlpack

from tests.runtime.device.fake import FakeBuffer, FakeDevice, aligned
from visionllm_edge.runtime.device import DeviceArray
from visionllm_edge.runtime.device.arrays import array_from_foreign
from visionllm_edge.runtime.device.dlpack import (
    DLPACK_CPU,
    _alive,
    capsule_from_memory,
    describe_capsule,
)
from visionllm_edge.runtime.errors import BackendError


def device_array(
    device: FakeDevice, values: np.ndarray, element_type: str = ""
) -> tuple[DeviceArray, Any]:
    """An array whose content is still under way, and its stream."""
    stream = device.new_stream()
    buffer = device.allocate(values.nbytes)
    host = device.allocate_host(values.nbytes, mapped=False)
    host.content[:] = values.reshape(-1).view(np.uint8)
    device.copy_in(buffer.address, host.host_address, values.nbytes, stream)
    stream.put(lambda keep=host: None)  # type: ignore[misc]
    array = DeviceArray(
        device, stream, address=buffer.address, shape=values.shape,
        element_type=element_type or values.dtype.name, owner=buffer,
    )  # fmt: skip
    return array, stream


VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_numpy_gets_a_finished_copy() -> None:
    array, _ = device_array(FakeDevice(), VALUES)
    host = np.asarray(array)
    assert np.array_equal(host, VALUES) and host.dtype == np.float32
    assert np.asarray(array, np.float64).dtype == np.float64
    assert array.nbytes == 24 and repr(array) == "DeviceArray([2, 3], float32)"
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(array, copy=False)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int32", "int8", "uint8", "bool"])
def test_dlpack_out_is_read_by_numpy_and_torch(dtype: str) -> None:
    # A device that calls itself a CPU: then numpy and torch read the capsule for real.
    device = FakeDevice(dlpack_type=DLPACK_CPU)
    values = (np.arange(6).reshape(2, 3) % 2).astype(dtype)
    array, stream = device_array(device, values)
    stream.synchronize()
    assert np.array_equal(np.from_dlpack(array), values)  # type: ignore[arg-type]
    assert np.array_equal(torch.utils.dlpack.from_dlpack(array).numpy(), values)


def test_bfloat16_goes_to_torch_and_not_to_numpy() -> None:
    bits = np.array([0x3F80, 0x4000], np.uint16)  # 1.0 and 2.0
    array, stream = device_array(FakeDevice(dlpack_type=DLPACK_CPU), bits, "bfloat16")
    stream.synchronize()
    tensor = torch.utils.dlpack.from_dlpack(array)
    assert tensor.dtype == torch.bfloat16 and tensor.tolist() == [1.0, 2.0]
    assert np.array_equal(np.asarray(array), bits)
    assert not hasattr(array, "__cuda_array_interface__")


def test_a_consumer_keeps_the_memory_and_gives_it_back() -> None:
    device = FakeDevice(dlpack_type=DLPACK_CPU)
    array, stream = device_array(device, VALUES)
    stream.synchronize()
    tensor = torch.utils.dlpack.from_dlpack(array)
    del array, stream
    gc.collect()
    assert len(_alive) == 1 and device.taken_bytes == VALUES.nbytes
    assert tensor.sum() == 15
    del tensor
    gc.collect()
    assert len(_alive) == 0 and device.taken_bytes == 0


def test_an_unused_capsule_gives_the_memory_back() -> None:
    device = FakeDevice()
    array, _ = device_array(device, VALUES)
    capsule = array.__dlpack__(stream=-1)
    del array
    gc.collect()
    assert len(_alive) == 1
    del capsule
    gc.collect()
    assert len(_alive) == 0 and device.taken_bytes == 0


@pytest.mark.parametrize(("asked", "waiting"), [(None, 1), (1, 1), (102, 102), (-1, None)])
def test_the_consumers_stream_waits_for_ours(asked: int | None, waiting: int | None) -> None:
    device = FakeDevice()
    device.new_stream()
    array, stream = device_array(device, VALUES)
    theirs = device.new_stream()
    assert theirs.handle == 102
    array.__dlpack__(stream=asked)
    if waiting is None:
        assert not theirs.pending and not device.streams[1].pending
        return
    device.streams[waiting].synchronize()
    assert not stream.pending


def test_the_cuda_array_interface_names_our_stream() -> None:
    array, stream = device_array(FakeDevice(), VALUES)
    assert array.__cuda_array_interface__ == {
        "shape": (2, 3), "typestr": "<f4", "data": (array.address, False), "strides": None,
        "stream": stream.handle, "version": 3,
    }  # fmt: skip


class Foreign:
    """A tensor of a library that offers DLPack, CUDA arrays, or both."""

    def __init__(self, device: FakeDevice, values: np.ndarray, **interface: Any) -> None:
        self.memory = aligned(values.nbytes)
        device.adopt(self.memory)
        self.stream = device.new_stream()
        self.stream.put(lambda: self.memory.__setitem__(slice(None), values.reshape(-1).view("u1")))
        self.device, self.values, self.asked = device, values, 0
        self.interface = {
            "shape": values.shape, "typestr": values.dtype.str, "strides": None, "version": 3,
            "data": (self.memory.ctypes.data, False), "stream": self.stream.handle, **interface,
        }  # fmt: skip


class ForeignCuda(Foreign):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.interface


class ForeignDlpack(Foreign):
    place: tuple[int, int] = (2, 0)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place

    def __dlpack__(self, *, stream: int) -> object:
        self.asked = stream
        event = self.device.new_event()
        event.record(self.stream)
        self.device.streams[stream].wait_for(event)
        return capsule_from_memory(
            self.memory.ctypes.data, dtype=self.values.dtype.name, shape=self.values.shape,
            device=self.place, owner=self,
        )  # fmt: skip


@pytest.mark.parametrize("kind", [ForeignCuda, ForeignDlpack])
def test_foreign_arrays_come_in_without_a_copy(kind: type[Foreign]) -> None:
    device = FakeDevice()
    stream, foreign = device.new_stream(), kind(device, VALUES)
    array = array_from_foreign("x", foreign, device, stream)
    assert isinstance(array, DeviceArray)
    assert array.address == foreign.memory.ctypes.data
    assert (array.shape, array.element_type) == ((2, 3), "float32")
    assert "copy_in" not in device.calls and "copy_within" not in device.calls
    # Its own stream has not worked yet; ours waits for it.
    assert np.array_equal(np.asarray(array), VALUES)


def test_a_foreign_array_lives_as_long_as_ours() -> None:
    device = FakeDevice()
    array: Any = array_from_foreign("x", ForeignDlpack(device, VALUES), device, device.new_stream())
    gc.collect()
    assert np.array_equal(np.asarray(array), VALUES)


def test_host_tensors_become_numpy_arrays() -> None:
    device = FakeDevice()
    stream, tensor = device.new_stream(), torch.arange(4)
    array = array_from_foreign("x", tensor, device, stream)
    assert isinstance(array, np.ndarray) and array.ctypes.data == tensor.data_ptr()
    assert array_from_foreign("x", array, device, stream) is array
    assert array_from_foreign("x", [1, 2], device, stream) == [1, 2]


@pytest.mark.parametrize(
    ("interface", "message"),
    [
        ({"strides": (4, 8)}, "contiguous"),
        ({"mask": object()}, "mask"),
        ({"typestr": ">f4"}, "got a ForeignCuda of >f4"),
        ({"typestr": "<f8"}, "float64"),
    ],
)
def test_arrays_that_no_port_takes(interface: dict[str, Any], message: str) -> None:
    device = FakeDevice()
    foreign = ForeignCuda(device, VALUES, **interface)
    with pytest.raises(BackendError, match=f"input 'x'.*{message}"):
        array_from_foreign("x", foreign, device, device.new_stream())


def test_row_major_strides_are_contiguous() -> None:
    device = FakeDevice()
    foreign = ForeignCuda(device, VALUES[None], strides=(1, 12, 4), stream=None)
    assert isinstance(array_from_foreign("x", foreign, device, device.new_stream()), DeviceArray)


def test_another_device_is_refused() -> None:
    device = FakeDevice()
    foreign = ForeignDlpack(device, VALUES)
    foreign.place = (2, 1)
    with pytest.raises(BackendError, match=r"expected an array on device 0.*\(2, 1\)"):
        array_from_foreign("x", foreign, device, device.new_stream())


def test_what_a_producer_refuses_is_told() -> None:
    class Stubborn(ForeignDlpack):
        def __dlpack__(self, *, stream: int) -> object:
            raise BufferError("requires grad")

    device = FakeDevice()
    with pytest.raises(BackendError, match="Stubborn cannot be taken by DLPack: requires grad"):
        array_from_foreign("x", Stubborn(device, VALUES), device, device.new_stream())


def test_capsules_of_numpy_and_torch_are_read() -> None:
    values = np.arange(12, dtype=np.int32).reshape(3, 4)
    described = describe_capsule(values.__dlpack__())
    assert described.address == values.ctypes.data
    assert (described.shape, described.dtype, described.contiguous) == ((3, 4), "int32", True)
    assert not describe_capsule(values.T.__dlpack__()).contiguous
    tensor = torch.zeros(2, 5, dtype=torch.bfloat16)[:, 1:]
    described = describe_capsule(tensor.__dlpack__())
    assert described.address == tensor.data_ptr() and described.dtype == "bfloat16"
    assert not described.contiguous
    assert describe_capsule(torch.zeros(1, dtype=torch.complex64).__dlpack__()).dtype == "5:64x1"
    capsule = values.__dlpack__()
    np.from_dlpack(Used(capsule))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unused"):
        describe_capsule(capsule)


class Used:
    def __init__(self, capsule: object) -> None:
        self.capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return DLPACK_CPU, 0

    def __dlpack__(self, **_: object) -> object:
        return self.capsule


def test_the_owner_may_be_a_buffer() -> None:
    device = FakeDevice()
    array, _ = device_array(device, VALUES)
    assert isinstance(array.owner, FakeBuffer)
