"""The CUDA device: every status is checked. Against stand-in bindings, and the real ones as far as
they go without a GPU."""

from __future__ import annotations

import enum
import gc
import inspect
import logging
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.runtime.device.fake import aligned
from visionllm_edge.runtime.device import cuda
from visionllm_edge.runtime.device.base import Device
from visionllm_edge.runtime.device.cuda import CudaDevice, open_device
from visionllm_edge.runtime.errors import BackendError


class Status(enum.Enum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815
    cudaErrorUnknown = 999  # noqa: N815


class Bindings:
    """``cuda.bindings.runtime`` with host memory: records calls, fails on demand."""

    cudaError_t = Status  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out", cudaMemcpyDeviceToDevice="within"
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="local")  # noqa: N815
    cudaDeviceAttr = SimpleNamespace(  # noqa: N815
        cudaDevAttrComputeCapabilityMajor=("major", 8),
        cudaDevAttrComputeCapabilityMinor=("minor", 7),
        cudaDevAttrIntegrated=("integrated", 1),
        cudaDevAttrCanMapHostMemory=("map", 1),
    )

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.log: list[tuple[Any, ...]] = []
        self.fail: dict[str, Status] = {}
        self.memory: dict[int, Any] = {}
        self.handles = iter(range(1000, 2000))
        self.capturing = False

    def cudaGetErrorString(self, status: Status) -> tuple[Status, bytes]:  # noqa: N802
        return Status.cudaSuccess, b"in words"

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.log.append((name, *arguments))
            if name in self.fail:
                return (self.fail[name], None)
            return (Status.cudaSuccess, *self.answer(name, arguments))

        return call

    def answer(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if name in ("cudaMalloc", "cudaHostAlloc"):
            memory = aligned(arguments[0])
            self.memory[memory.ctypes.data] = memory
            return (memory.ctypes.data,)
        if name in ("cudaFree", "cudaFreeHost"):
            del self.memory[arguments[0]]
            return ()
        if name == "cudaDeviceGetAttribute":
            return (arguments[0][1],)
        if "Capture" in name:
            self.capturing = name == "cudaStreamBeginCapture"
        answers: dict[str, tuple[Any, ...]] = {
            "cudaGetDeviceCount": (self.devices,),
            "cudaDriverGetVersion": (12060,),
            "cudaGetDeviceProperties": (SimpleNamespace(name=b"Orin\0\0", totalGlobalMem=7),),
            "cudaEventElapsedTime": (1.5,),
            "cudaStreamIsCapturing": (int(self.capturing),),
            "cudaHostGetDevicePointer": (arguments[0] if arguments else 0,),
        }
        made = ("cudaStreamCreateWithFlags", "cudaEventCreateWithFlags", "cudaStreamEndCapture",
                "cudaGraphInstantiate")  # fmt: skip
        return answers.get(name, (next(self.handles),) if name in made else ())


def opened(devices: int = 1) -> tuple[CudaDevice, Bindings]:
    bindings: Any = Bindings(devices)
    return CudaDevice(bindings, 0), bindings


def test_properties() -> None:
    device: Device = opened()[0]
    properties = device.properties
    assert (properties.name, properties.sm, properties.driver) == ("Orin", 87, "12.6")
    assert properties.maps_host_memory and properties.memory_bytes == 7


def everything(device: CudaDevice) -> None:
    """One call of everything, for its arguments and for its failures."""
    stream, event, start = device.new_stream(), device.new_event(timing=True), device.new_event()
    buffer, host = device.allocate(64), device.allocate_host(64, mapped=True)
    device.copy_in(buffer.address, host.host_address, 64, stream)
    device.copy_out(host.host_address, buffer.address, 32, stream)
    device.copy_within(buffer.address, buffer.address + 32, 16, stream)
    device.fill(buffer.address, 3, 8, stream)
    event.record(stream)
    device.stream_from_handle(5).wait_for(event)
    event.synchronize()
    stream.synchronize()
    assert event.milliseconds_since(start) == 1.5
    device.begin_capture(stream)
    event.record(stream)
    device.end_capture(stream).launch(stream)


def test_calls_and_their_arguments() -> None:
    device, bindings = opened()
    bindings.log.clear()
    everything(device)
    gc.collect()
    log = {entry[0]: entry[1:] for entry in bindings.log}
    assert log["cudaStreamCreateWithFlags"] == (1,)
    assert log["cudaHostAlloc"] == (64, 3)
    copies = [entry[3:5] for entry in bindings.log if entry[0] == "cudaMemcpyAsync"]
    assert copies == [(64, "in"), (32, "out"), (16, "within")]
    assert log["cudaMemsetAsync"][1:3] == (3, 8)
    assert log["cudaStreamWaitEvent"][0] == 5
    assert log["cudaStreamBeginCapture"][1] == "local"
    # An event with timing is part of a recording; elsewhere it is set as any other.
    marked, marks = log["cudaEventRecordWithFlags"], log["cudaEventRecord"]
    assert marked == (*marks, 1)
    # What was made is given back, the graph included; a stream of somebody else is not.
    released = [entry[0] for entry in bindings.log if "Destroy" in entry[0] or "Free" in entry[0]]
    assert sorted(released) == [
        "cudaEventDestroy", "cudaEventDestroy", "cudaFree", "cudaFreeHost", "cudaGraphDestroy",
        "cudaGraphExecDestroy", "cudaStreamDestroy",
    ]  # fmt: skip
    assert not bindings.memory


RELEASES = {
    "cudaEventDestroy", "cudaFree", "cudaFreeHost", "cudaGraphExecDestroy", "cudaStreamDestroy",
}  # fmt: skip


def called() -> list[str]:
    device, bindings = opened()
    everything(device)
    gc.collect()
    return sorted({entry[0] for entry in bindings.log} - RELEASES)


@pytest.mark.parametrize("name", called())
def test_every_bad_status_is_an_error(name: str) -> None:
    bindings: Any = Bindings()
    bindings.fail[name] = Status.cudaErrorUnknown
    with pytest.raises(BackendError, match=rf"CUDA device 0: {name}.*cudaErrorUnknown: in words\."):
        everything(CudaDevice(bindings, 0))


def test_a_failed_release_is_logged_and_does_not_raise(caplog: pytest.LogCaptureFixture) -> None:
    device, bindings = opened()
    bindings.fail = dict.fromkeys(RELEASES, Status.cudaErrorUnknown)
    with caplog.at_level(logging.DEBUG, logger="visionllm_edge"):
        everything(device)
        gc.collect()
    assert {record.message.split()[3] for record in caplog.records} == RELEASES


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (Status.cudaErrorMemoryAllocation, r"\(123 bytes\).*Free memory on the device"),
        (Status.cudaErrorIllegalAddress, "start the process again"),
        (Status.cudaErrorUnknown, "doctor"),
    ],
)
def test_next_steps(status: Status, message: str) -> None:
    device, bindings = opened()
    bindings.fail["cudaMalloc"] = status
    with pytest.raises(BackendError, match=message):
        device.allocate(123)


@pytest.mark.parametrize(("devices", "message"), [(0, "NVIDIA GPU"), (1, "Choose a device")])
def test_a_device_that_is_not_there(devices: int, message: str) -> None:
    bindings: Any = Bindings(devices)
    with pytest.raises(BackendError, match=f"expected a number below {devices}.*{message}"):
        CudaDevice(bindings, devices)


def test_pinned_views_keep_their_memory() -> None:
    device, bindings = opened()
    view = device.allocate_host(16, mapped=False).content[4:8].view(np.float32)
    gc.collect()
    assert len(bindings.memory) == 1
    view[0] = 1.0
    del view
    gc.collect()
    assert not bindings.memory


def test_a_graph_that_cannot_be_instantiated_is_still_destroyed() -> None:
    device, bindings = opened()
    stream = device.new_stream()
    device.begin_capture(stream)
    bindings.fail["cudaGraphInstantiate"] = Status.cudaErrorUnknown
    with pytest.raises(BackendError, match="cudaGraphInstantiate"):
        device.end_capture(stream)
    assert "cudaGraphDestroy" in [entry[0] for entry in bindings.log]


def test_missing_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(cuda, "importlib", SimpleNamespace(import_module=absent))
    cuda._opened.cache_clear()
    with pytest.raises(BackendError, match=r"'cuda-bindings' cannot be imported.*Install"):
        open_device()


def test_every_name_exists_in_the_real_bindings() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings not installed")
    names = {*called(), *RELEASES, "cudaGetErrorString"}
    for name in names:
        assert inspect.isroutine(getattr(runtime, name)), name
    for group in ("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr"):
        for member in vars(getattr(Bindings, group)):
            assert hasattr(getattr(runtime, group), member)
    for code in (*cuda._NEXT_STEPS, *cuda._FATAL):
        assert hasattr(runtime.cudaError_t, code), code


def test_the_real_bindings_take_our_arguments() -> None:
    """Wrong types raise before CUDA is asked, with or without a device."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings not installed")
    status, count = runtime.cudaGetDeviceCount()
    if status == runtime.cudaError_t.cudaSuccess and count:
        pytest.skip("this machine has a device: handles made up here would be used")
    device, bindings = opened()
    everything(device)
    gc.collect()
    enums = {"in": runtime.cudaMemcpyKind.cudaMemcpyHostToDevice,
             "out": runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost,
             "within": runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice,
             "local": runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal}  # fmt: skip
    for name, *arguments in bindings.log:
        if name == "cudaDeviceGetAttribute":
            arguments[0] = runtime.cudaDeviceAttr.cudaDevAttrIntegrated
        given = [enums.get(a, a) if isinstance(a, str) else a for a in arguments]
        answer = getattr(runtime, name)(*given)
        assert isinstance(answer, tuple) and isinstance(answer[0], runtime.cudaError_t), name
    cuda._opened.cache_clear()
    with pytest.raises(BackendError, match=r"cudaErrorInsufficientDriver|cudaErrorNoDevice"):
        open_device()


def test_a_new_thread_chooses_the_device_before_anything_else() -> None:
    bindings: Any = Bindings(devices=2)
    device = CudaDevice(bindings, 1)
    bindings.log.clear()
    device.new_event().synchronize()
    assert "cudaSetDevice" not in {entry[0] for entry in bindings.log}

    def work() -> None:
        device.new_event().synchronize()
        device.allocate(64)

    bindings.log.clear()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert bindings.log[0] == ("cudaSetDevice", 1)
    assert [entry[0] for entry in bindings.log].count("cudaSetDevice") == 1


def test_a_device_that_cannot_be_chosen_is_tried_again() -> None:
    device, bindings = opened()
    told = []

    def work() -> None:
        bindings.fail = {"cudaSetDevice": Status.cudaErrorUnknown}
        for _ in range(2):
            try:
                device.new_event()
            except BackendError as error:
                told.append("cudaSetDevice failed" in str(error))
            bindings.fail = {}

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == [True]
    assert [e[0] for e in bindings.log if e[0] != "cudaEventDestroy"][-2:] == [
        "cudaSetDevice", "cudaEventCreateWithFlags",
    ]  # fmt: skip
