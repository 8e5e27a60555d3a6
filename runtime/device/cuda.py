"""CUDA behind the device interface, by ``cuda.bindings.runtime``: every returned status is checked.

The bindings are imported when a device is opened. Their major version has to be one that the
driver knows: 12.x for JetPack 6, 13.x for JetPack 7 and current desktop and datacentre drivers.
"""

from __future__ import annotations

import functools
import importlib
import logging
import threading
import weakref
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.device.base import DeviceProperties, Event, Graph, Stream
from visionllm_edge.runtime.device.dlpack import DLPACK_CUDA
from visionllm_edge.runtime.errors import BackendError

__all__ = ["CudaDevice", "open_device"]

_log = logging.getLogger(__name__)

_NEXT_STEPS = {
    "cudaErrorMemoryAllocation": "Free memory on the device, or compile for a smaller size bucket, "
    "context or precision.",
    "cudaErrorInsufficientDriver": "Install an NVIDIA driver at least as new as the CUDA version "
    "of the installed cuda-bindings, or older cuda-bindings.",
    "cudaErrorNoDevice": "Run on a machine with an NVIDIA GPU, or use a bundle for target 'cpu'.",
    "cudaErrorInvalidDevice": "Choose a device that exists.",
}
# After these the process cannot use the device any more, whatever it calls.
_FATAL = (
    "cudaErrorIllegalAddress",
    "cudaErrorLaunchFailure",
    "cudaErrorHardwareStackError",
    "cudaErrorMisalignedAddress",
    "cudaErrorAssert",
    "cudaErrorECCUncorrectable",
    "cudaErrorIllegalInstruction",
    "cudaErrorLaunchTimeout",
)
# Before a device is chosen.
_ANYWHERE = frozenset({"cudaGetDeviceCount", "cudaSetDevice"})
_ANY_NEXT_STEP = "Run 'visionllm-edge doctor' to see what this machine has."


def open_device(ordinal: int = 0) -> CudaDevice:
    """The CUDA device of that number; the same object each time.

    Raises:
        BackendError: the bindings, a driver or the device is missing.
    """
    return _opened(ordinal)


@functools.cache
def _opened(ordinal: int) -> CudaDevice:
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ImportError as e:
        raise BackendError(
            f"CUDA device {ordinal}: the package 'cuda-bindings' cannot be imported ({e}). "
            "Install 'visionllm-edge[cuda]'."
        ) from e
    return CudaDevice(runtime, ordinal)


class _Calls:
    """Calls functions of the bindings by name and turns a bad status into a ``BackendError``."""

    def __init__(self, runtime: ModuleType, ordinal: int) -> None:
        self._runtime = runtime
        self._ordinal = ordinal
        self._here = threading.local()

    def choose_device(self) -> None:
        """Make the device the calling thread's current one, which no thread inherits.

        Raises:
            BackendError: there is no such device.
        """
        self("cudaSetDevice", self._ordinal)
        self._here.chosen = True

    def constant(self, group: str, name: str) -> object:
        """A member of one of the bindings' enumerations."""
        return getattr(getattr(self._runtime, group), name)

    def __call__(self, name: str, *arguments: object, about: str = "") -> object:
        """Call; returns what stands behind the status: nothing, one value or a tuple."""
        if name not in _ANYWHERE and not hasattr(self._here, "chosen"):
            self.choose_device()
        try:
            status, *values = getattr(self._runtime, name)(*arguments)
        # The bindings load the CUDA libraries at the first call; the error is a class of theirs.
        except (RuntimeError, OSError, AttributeError) as e:
            raise BackendError(
                f"CUDA device {self._ordinal}: {name} cannot be called "
                f"({type(e).__name__}: {e}). {_NEXT_STEPS['cudaErrorInsufficientDriver']}"
            ) from e
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise BackendError(self._message(name, status, about))
        return values[0] if len(values) == 1 else tuple(values) or None

    def number(self, name: str, *arguments: object, about: str = "") -> int:
        """Call what gives one number, pointer or handle."""
        return int(self(name, *arguments, about=about))  # type: ignore[call-overload,no-any-return]

    def release_with(self, owner: object, name: str, handle: object) -> None:
        """Call when the owner dies; a failure is logged, there is nobody left to tell."""
        weakref.finalize(owner, self._release, name, handle).atexit = False

    def _release(self, name: str, handle: object) -> None:
        try:
            self(name, handle)
        except BackendError as e:
            # The text alone: the exception would keep the frames of whoever let go.
            _log.debug("%s", str(e))

    def _message(self, name: str, status: object, about: str) -> str:
        code = getattr(status, "name", str(status))
        _, text = self._runtime.cudaGetErrorString(status)
        words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        step = _NEXT_STEPS.get(code, _ANY_NEXT_STEP)
        if code in _FATAL:
            step = "Nothing in this process can use the device any more: start the process again."
        what = f" ({about})" if about else ""
        return f"CUDA device {self._ordinal}: {name}{what} failed with {code}: {words}. {step}"


class _Stream:
    def __init__(self, calls: _Calls, handle: int, *, owned: bool) -> None:
        self._calls = calls
        self._handle = handle
        if owned:
            calls.release_with(self, "cudaStreamDestroy", handle)

    @property
    def handle(self) -> int:
        return self._handle

    def synchronize(self) -> None:
        self._calls("cudaStreamSynchronize", self._handle)

    def wait_for(self, event: Event) -> None:
        assert isinstance(event, _Event), "streams and events of one device go together"
        self._calls("cudaStreamWaitEvent", self._handle, event.handle, 0)


class _Event:
    def __init__(self, calls: _Calls, *, timing: bool) -> None:
        self._calls = calls
        self._timing = timing
        # 2: no timing, as cudaEventDisableTiming.
        self.handle = calls.number("cudaEventCreateWithFlags", 0 if timing else 2)
        calls.release_with(self, "cudaEventDestroy", self.handle)

    def record(self, stream: Stream) -> None:
        if self._timing and self._captures(stream):
            # 1: cudaEventRecordExternal. Without it the event would only order the recording.
            self._calls("cudaEventRecordWithFlags", self.handle, stream.handle, 1)
            return
        self._calls("cudaEventRecord", self.handle, stream.handle)

    def _captures(self, stream: Stream) -> bool:
        # 0: cudaStreamCaptureStatusNone.
        return self._calls.number("cudaStreamIsCapturing", stream.handle) != 0

    def synchronize(self) -> None:
        self._calls("cudaEventSynchronize", self.handle)

    def milliseconds_since(self, start: Event) -> float:
        assert isinstance(start, _Event), "events of one device go together"
        elapsed = self._calls("cudaEventElapsedTime", start.handle, self.handle)
        assert isinstance(elapsed, float)
        return elapsed


class _Graph:
    def __init__(self, calls: _Calls, graph: object) -> None:
        self._calls = calls
        try:
            self._executable = calls("cudaGraphInstantiate", graph, 0)
        finally:
            calls("cudaGraphDestroy", graph)
        calls.release_with(self, "cudaGraphExecDestroy", self._executable)

    def launch(self, stream: Stream) -> None:
        self._calls("cudaGraphLaunch", self._executable, stream.handle)


class _DeviceBuffer:
    def __init__(self, calls: _Calls, nbytes: int) -> None:
        self.address = calls.number("cudaMalloc", nbytes, about=f"{nbytes} bytes")
        self.nbytes = nbytes
        calls.release_with(self, "cudaFree", self.address)


class _HostBuffer:
    def __init__(self, calls: _Calls, nbytes: int, *, mapped: bool) -> None:
        # 1: usable from every context; 2: mapped (cudaHostAllocPortable, cudaHostAllocMapped).
        flags = 3 if mapped else 1
        about = f"{nbytes} bytes of pinned memory"
        self.host_address = calls.number("cudaHostAlloc", nbytes, flags, about=about)
        calls.release_with(self, "cudaFreeHost", self.host_address)
        self.device_address = 0
        if mapped:
            self.device_address = calls.number("cudaHostGetDevicePointer", self.host_address, 0)
        # numpy reads this attribute and keeps its owner: views outlive whoever asked for them.
        self.__array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (self.host_address, False),
            "version": 3,
        }

    @property
    def content(self) -> NDArray[np.uint8]:
        return np.asarray(self)


class CudaDevice:
    """One CUDA device; implements ``Device``. For any thread: its first call chooses the device."""

    def __init__(self, runtime: ModuleType, ordinal: int) -> None:
        """Choose the device and read its properties."""
        self._calls = _Calls(runtime, ordinal)
        count = self._calls.number("cudaGetDeviceCount")
        if not 0 <= ordinal < count:
            step = _NEXT_STEPS["cudaErrorInvalidDevice" if count else "cudaErrorNoDevice"]
            raise BackendError(
                f"CUDA device {ordinal}: expected a number below {count}, the devices of this "
                f"machine. {step}"
            )
        self._calls.choose_device()
        self._properties = self._read_properties(ordinal)

    @property
    def properties(self) -> DeviceProperties:
        """See ``Device``."""
        return self._properties

    def allocate(self, nbytes: int) -> _DeviceBuffer:
        """See ``Device``."""
        return _DeviceBuffer(self._calls, nbytes)

    def allocate_host(self, nbytes: int, *, mapped: bool) -> _HostBuffer:
        """See ``Device``."""
        return _HostBuffer(self._calls, nbytes, mapped=mapped)

    def new_stream(self) -> _Stream:
        """See ``Device``."""
        # 1: cudaStreamNonBlocking.
        handle = self._calls.number("cudaStreamCreateWithFlags", 1)
        return _Stream(self._calls, handle, owned=True)

    def stream_from_handle(self, handle: int) -> _Stream:
        """See ``Device``."""
        return _Stream(self._calls, handle, owned=False)

    def new_event(self, *, timing: bool = False) -> _Event:
        """See ``Device``."""
        return _Event(self._calls, timing=timing)

    def copy_in(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """See ``Device``."""
        self._copy("cudaMemcpyHostToDevice", target, source, nbytes, stream)

    def copy_out(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """See ``Device``."""
        self._copy("cudaMemcpyDeviceToHost", target, source, nbytes, stream)

    def copy_within(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """See ``Device``."""
        self._copy("cudaMemcpyDeviceToDevice", target, source, nbytes, stream)

    def fill(self, target: int, value: int, nbytes: int, stream: Stream) -> None:
        """See ``Device``."""
        self._calls("cudaMemsetAsync", target, value, nbytes, stream.handle)

    def begin_capture(self, stream: Stream) -> None:
        """See ``Device``. Other threads may allocate meanwhile."""
        mode = self._calls.constant("cudaStreamCaptureMode", "cudaStreamCaptureModeThreadLocal")
        self._calls("cudaStreamBeginCapture", stream.handle, mode)

    def end_capture(self, stream: Stream) -> Graph:
        """See ``Device``."""
        return _Graph(self._calls, self._calls("cudaStreamEndCapture", stream.handle))

    def _copy(self, kind: str, target: int, source: int, nbytes: int, stream: Stream) -> None:
        direction = self._calls.constant("cudaMemcpyKind", kind)
        self._calls("cudaMemcpyAsync", target, source, nbytes, direction, stream.handle)

    def _read_properties(self, ordinal: int) -> DeviceProperties:
        def attribute(name: str) -> int:
            which = self._calls.constant("cudaDeviceAttr", name)
            return self._calls.number("cudaDeviceGetAttribute", which, ordinal)

        described = self._calls("cudaGetDeviceProperties", ordinal)
        name = getattr(described, "name", b"")
        driver = self._calls.number("cudaDriverGetVersion")
        return DeviceProperties(
            name=name.rstrip(b"\0").decode(errors="replace") if isinstance(name, bytes) else name,
            sm=attribute("cudaDevAttrComputeCapabilityMajor") * 10
            + attribute("cudaDevAttrComputeCapabilityMinor"),
            ordinal=ordinal,
            memory_bytes=int(getattr(described, "totalGlobalMem", 0)),
            maps_host_memory=bool(
                attribute("cudaDevAttrIntegrated") and attribute("cudaDevAttrCanMapHostMemory")
            ),
            dlpack_type=DLPACK_CUDA,
            driver=f"{driver // 1000}.{driver % 1000 // 10}",
        )
