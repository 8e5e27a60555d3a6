"""Arrays in device memory: ours, and those of torch, CuPy and PyCUDA, taken in without a copy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from visionllm_edge.runtime.device.base import Device, Stream
from visionllm_edge.runtime.device.dlpack import (
    DLPACK_CPU,
    DLPACK_CUDA_HOST,
    DLPACK_CUDA_MANAGED,
    capsule_from_memory,
    describe_capsule,
)
from visionllm_edge.runtime.device.memory import PooledBuffer
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.ports import DTYPES, Array, numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DeviceArray", "array_from_foreign"]


class DeviceArray:
    """Contiguous elements in device memory. Implements ``DeviceTensor``; the content is read-only.

    numpy gets a copy on the host, everything else gets the memory itself. bfloat16 has no place in
    numpy and in ``__cuda_array_interface__``: numpy sees its bits as uint16, others use DLPack.

    Attributes:
        shape: lengths.
        element_type: one of the port types.
        address: of the first element.
        owner: kept alive as long as this array.
    """

    def __init__(
        self,
        device: Device,
        stream: Stream,
        *,
        address: int,
        shape: tuple[int, ...],
        element_type: str,
        owner: object,
    ) -> None:
        """Describe memory whose content the stream's work brings about."""
        self._device = device
        self._stream = stream
        self.address = address
        self.shape = shape
        self.element_type = element_type
        self.owner = owner

    def _export(self) -> None:
        """Other libraries' work on this memory is not ours to order: a pool must not reuse it."""
        if isinstance(self.owner, PooledBuffer):
            self.owner.mark_exported()

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """As numpy holds it."""
        return numpy_dtype(self.element_type)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """A copy on the host, when the stream's work is done."""
        if copy is False:
            raise ValueError("an array in device memory cannot be read by numpy without a copy")
        host: Array = np.empty(self.shape, self.dtype)
        self._device.copy_out(host.ctypes.data, self.address, self.nbytes, self._stream)
        self._stream.synchronize()
        return host if dtype is None else host.astype(dtype, copy=False)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Device type and number."""
        return self._device.properties.dlpack_type, self._device.properties.ordinal

    def __dlpack__(self, *, stream: int | None = None, **_: object) -> object:
        """A capsule; the consumer's stream waits for ours.

        Args:
            stream: the consumer's stream; None is the legacy default stream, -1 asks for no wait.
        """
        self._export()
        if stream != -1:
            handle = 1 if stream is None or stream == 0 else stream
            self.order_before(self._device.stream_from_handle(handle))
        return capsule_from_memory(
            self.address,
            dtype=self.element_type,
            shape=self.shape,
            device=self.__dlpack_device__(),
            owner=self,
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """Version 3, for CuPy, PyCUDA and Numba."""
        if self.element_type == "bfloat16":
            raise AttributeError("bfloat16 has no type string; use DLPack")
        self._export()
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": self._stream.handle,
            "version": 3,
        }

    def __repr__(self) -> str:
        """Shape and type; the content stays where it is."""
        return f"DeviceArray({list(self.shape)}, {self.element_type})"

    def order_before(self, stream: Stream) -> None:
        """Let a stream's later work find this array finished."""
        if stream.handle == self._stream.handle:
            return
        event = self._device.new_event()
        event.record(self._stream)
        stream.wait_for(event)


def array_from_foreign(name: str, value: object, device: Device, stream: Stream) -> object:
    """Another library's array as one of ours, over the same memory; anything else as it is.

    1. numpy arrays and device arrays: unchanged; ``stream`` waits for what makes them.
    2. DLPack on this device (torch, CuPy): the producer orders its work before ``stream``.
    3. DLPack on the host: a numpy array.
    4. ``__cuda_array_interface__`` (PyCUDA, Numba): its stream, if it names one, is waited for.

    Args:
        name: of the input, for messages.
        value: what was given.
        device: where it has to be.
        stream: which will read it.

    Raises:
        BackendError: on another device, with gaps between rows, or of a type that no port has.
    """
    if isinstance(value, DeviceArray):
        value.order_before(stream)
        return value
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        return _from_dlpack(name, value, device, stream)
    if hasattr(value, "__cuda_array_interface__"):
        return _from_cuda_array(name, value, device, stream)
    return value


def _from_dlpack(name: str, value: object, device: Device, stream: Stream) -> object:
    kind = type(value).__name__
    try:
        place = value.__dlpack_device__()  # type: ignore[attr-defined]
        mine = (device.properties.dlpack_type, device.properties.ordinal)
        if place[0] in (DLPACK_CPU, DLPACK_CUDA_HOST) and place != mine:
            return np.from_dlpack(value)  # type: ignore[arg-type]
        if place != mine and place[0] != DLPACK_CUDA_MANAGED:
            raise BackendError(
                f"input {name!r}: expected an array on device {mine[1]}, got a {kind} on DLPack "
                f"device {tuple(place)}. Copy it to device {mine[1]} first."
            )
        capsule = value.__dlpack__(stream=stream.handle)  # type: ignore[attr-defined]
        found = describe_capsule(capsule)
    # What a producer raises is its own affair: torch alone has two of these.
    except (BufferError, RuntimeError, TypeError, ValueError) as e:
        raise BackendError(f"input {name!r}: this {kind} cannot be taken by DLPack: {e}") from e
    _check_layout(name, kind, found.dtype, found.contiguous)
    return DeviceArray(
        device,
        stream,
        address=found.address,
        shape=found.shape,
        element_type=found.dtype,
        owner=(capsule, value),
    )


def _from_cuda_array(name: str, value: object, device: Device, stream: Stream) -> DeviceArray:
    kind = type(value).__name__
    described: Mapping[str, object] = value.__cuda_array_interface__  # type: ignore[attr-defined]
    dtype = np.dtype(cast(str, described["typestr"]))
    shape = tuple(int(length) for length in cast(tuple[int, ...], described["shape"]))
    strides = described.get("strides")
    contiguous = strides is None or _row_major(
        shape, cast(tuple[int, ...], strides), dtype.itemsize
    )
    if described.get("mask") is not None:
        raise BackendError(f"input {name!r}: a {kind} with a mask cannot be used. Fill it first.")
    native = dtype.newbyteorder("=").name if dtype.isnative else dtype.str
    _check_layout(name, kind, native, contiguous)
    theirs = described.get("stream")
    if theirs is not None and theirs != stream.handle:
        event = device.new_event()
        event.record(device.stream_from_handle(cast(int, theirs)))
        stream.wait_for(event)
    return DeviceArray(
        device,
        stream,
        address=cast(tuple[int, bool], described["data"])[0],
        shape=shape,
        element_type=native,
        owner=value,
    )


def _row_major(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    expected = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _check_layout(name: str, kind: str, dtype: str, contiguous: bool) -> None:
    if dtype not in DTYPES:
        raise BackendError(
            f"input {name!r}: expected one of {', '.join(DTYPES)}, got a {kind} of {dtype}. "
            "Convert it first."
        )
    if not contiguous:
        raise BackendError(
            f"input {name!r}: expected a contiguous array, got a {kind} with other strides. "
            "Make it contiguous first, which copies it."
        )
