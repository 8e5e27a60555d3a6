"""A device in numpy. Work happens when somebody waits: a missing wait gives wrong numbers.

Every address is checked: memory that was freed, never taken, or of the wrong side is refused. Any
call can be made to fail. Time on the device passes only with work: a copy takes 1 ms of it.
"""

from __future__ import annotations

import bisect
import ctypes
import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.device.base import DeviceProperties, Event, Stream
from visionllm_edge.runtime.device.dlpack import DLPACK_CUDA
from visionllm_edge.runtime.errors import BackendError

Work = Callable[[], None]
PROPERTIES = DeviceProperties("Fake GPU", 89, 0, 2**30, False, DLPACK_CUDA, "13.0")
_ALIGNMENT = 256


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """Memory as a device gives it, full of what an earlier owner left."""
    raw = np.full(nbytes + _ALIGNMENT, 0x7F, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes]


@dataclass
class FakeBuffer:
    memory: NDArray[np.uint8]

    @property
    def address(self) -> int:
        return int(self.memory.ctypes.data)

    @property
    def nbytes(self) -> int:
        return int(self.memory.nbytes)


@dataclass
class FakeHostBuffer:
    content: NDArray[np.uint8]
    mapped: bool

    @property
    def host_address(self) -> int:
        return int(self.content.ctypes.data)

    @property
    def device_address(self) -> int:
        return self.host_address if self.mapped else 0


@dataclass(eq=False)
class FakeEvent:
    device: FakeDevice
    stream: FakeStream | None = None
    timing: bool = False
    reached: bool = True
    when: float = 0.0

    def record(self, stream: Stream) -> None:
        assert isinstance(stream, FakeStream)
        self.device.call("event.record")
        if stream.recording is None:
            self.reached = False
        self.stream = stream
        stream.put(self._reach)

    def synchronize(self) -> None:
        self.device.call("event.synchronize")
        if not self.reached and self.stream is not None:
            self.stream.work_until(lambda: self.reached)

    def milliseconds_since(self, start: Event) -> float:
        assert isinstance(start, FakeEvent) and self.reached and start.reached
        assert self.timing and start.timing, "an event without timing"
        return self.when - start.when

    def _reach(self) -> None:
        self.reached, self.when = True, self.device.now_ms


@dataclass(eq=False)
class FakeStream:
    device: FakeDevice
    handle: int
    pending: list[Work] = field(default_factory=list)
    recording: list[Work] | None = None
    spoiled: str = ""

    def put(self, work: Work) -> None:
        (self.pending if self.recording is None else self.recording).append(work)

    def synchronize(self) -> None:
        self.device.call("stream.synchronize")
        assert self.recording is None, "waiting for a stream that records"
        self.work_until(lambda: False)

    def work_until(self, enough: Callable[[], bool]) -> None:
        while self.pending and not enough():
            self.pending.pop(0)()

    def wait_for(self, event: Event) -> None:
        assert isinstance(event, FakeEvent)
        self.device.call("stream.wait_for")
        self.put(lambda: None if event.stream is None else event.stream.work_until(
            lambda: event.reached
        ))  # fmt: skip


@dataclass
class FakeGraph:
    device: FakeDevice
    work: list[Work]

    def launch(self, stream: Stream) -> None:
        assert isinstance(stream, FakeStream)
        self.device.call("graph.launch")
        for work in self.work:
            stream.put(work)


class FakeDevice:
    """Implements ``Device``.

    Attributes:
        calls: names of the calls made, in order.
        fail: name of a call -> how many calls from now on fail; -1 for all.
        properties: may be replaced before the device is used.
        now_ms: what its work has taken so far.
    """

    def __init__(self, **properties: object) -> None:
        self.properties = replace(PROPERTIES, **properties)  # type: ignore[arg-type]
        self.calls: list[str] = []
        self.fail: dict[str, int] = {}
        self.now_ms = 0.0
        self.streams: dict[int, FakeStream] = {1: FakeStream(self, 1)}
        self._handles = itertools.count(100)
        # Sorted starts, and (end, side) of what is taken.
        self._starts: list[int] = []
        self._taken: dict[int, tuple[int, str, NDArray[np.uint8]]] = {}
        self.peak_bytes = 0

    def call(self, name: str) -> None:
        self.calls.append(name)
        left = self.fail.get(name, 0)
        if left:
            self.fail[name] = left - 1
            raise BackendError(f"fake device: {name} failed as planned. Try again.")

    @property
    def taken_bytes(self) -> int:
        return sum(end - start for start, (end, _, _) in self._taken.items())

    def allocate(self, nbytes: int) -> FakeBuffer:
        self.call("allocate")
        self._not_recording()
        buffer = FakeBuffer(aligned(nbytes))
        self._take(buffer, buffer.memory, "device")
        return buffer

    def allocate_host(self, nbytes: int, *, mapped: bool) -> FakeHostBuffer:
        self.call("allocate_host")
        self._not_recording()
        assert not mapped or self.properties.maps_host_memory
        buffer = FakeHostBuffer(aligned(nbytes), mapped)
        self._take(buffer, buffer.content, "mapped" if mapped else "host")
        return buffer

    def new_stream(self) -> FakeStream:
        self.call("new_stream")
        stream = FakeStream(self, next(self._handles))
        self.streams[stream.handle] = stream
        return stream

    def stream_from_handle(self, handle: int) -> FakeStream:
        return self.streams[handle]

    def new_event(self, *, timing: bool = False) -> FakeEvent:
        self.call("new_event")
        return FakeEvent(self, timing=timing)

    def copy_in(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        self.call("copy_in")
        self._copy((target, "device"), (source, "host"), nbytes, stream)

    def copy_out(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        self.call("copy_out")
        self._copy((target, "host"), (source, "device"), nbytes, stream)

    def copy_within(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        self.call("copy_within")
        self._copy((target, "device"), (source, "device"), nbytes, stream)

    def fill(self, target: int, value: int, nbytes: int, stream: Stream) -> None:
        self.call("fill")
        assert isinstance(stream, FakeStream)
        stream.put(lambda: self.bytes_at(target, nbytes, "device").fill(value))

    def begin_capture(self, stream: Stream) -> None:
        self.call("begin_capture")
        assert isinstance(stream, FakeStream) and stream.recording is None
        stream.recording, stream.spoiled = [], ""

    def end_capture(self, stream: Stream) -> FakeGraph:
        assert isinstance(stream, FakeStream) and stream.recording is not None
        work, stream.recording = stream.recording, None
        self.call("end_capture")
        if stream.spoiled:
            raise BackendError(f"fake device: nothing was recorded: {stream.spoiled}. Go on.")
        return FakeGraph(self, work)

    def bytes_at(self, address: int, nbytes: int, side: str) -> NDArray[np.uint8]:
        """The bytes behind an address, if they are taken and of that side."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0:
            start = self._starts[index]
            end, found, memory = self._taken[start]
            if address + nbytes <= end:
                assert found in (side, "mapped"), f"{side} memory expected, got {found} memory"
                return memory[address - start : address - start + nbytes]
        assert side == "host", f"{nbytes} bytes at {address:#x} are not taken"
        # Ordinary host memory: CUDA takes it too, but not while recording.
        raw: Any = (ctypes.c_uint8 * nbytes).from_address(address)
        ordinary: NDArray[np.uint8] = np.frombuffer(raw, np.uint8)
        return ordinary

    def adopt(self, memory: NDArray[np.uint8]) -> None:
        """Memory of another library on this device."""
        self._take(memory, memory, "device")

    def _copy(
        self, target: tuple[int, str], source: tuple[int, str], nbytes: int, stream: Stream
    ) -> None:
        assert isinstance(stream, FakeStream)

        def work() -> None:
            self.now_ms += 1.0
            self.bytes_at(target[0], nbytes, target[1])[:] = self.bytes_at(
                source[0], nbytes, source[1]
            )

        # Whoever passes memory that is not taken learns it now.
        for address, side in (target, source):
            self.bytes_at(address, nbytes, side)
        stream.put(work)

    def _not_recording(self) -> None:
        assert all(s.recording is None for s in self.streams.values()), "taken while recording"

    def _take(self, owner: object, memory: NDArray[np.uint8], side: str) -> None:
        start = int(memory.ctypes.data)
        bisect.insort(self._starts, start)
        self._taken[start] = (start + memory.nbytes, side, memory)
        self.peak_bytes = max(self.peak_bytes, self.taken_bytes)
        weakref.finalize(owner, _free, weakref.ref(self), start).atexit = False


def _free(reference: weakref.ref[FakeDevice], start: int) -> None:
    device = reference()
    if device is None:
        return
    # As cudaFree does: what is on a stream still has its memory.
    for stream in device.streams.values():
        if stream.recording is None:
            stream.work_until(lambda: False)
    device._starts.remove(start)
    del device._taken[start]
