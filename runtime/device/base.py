"""What the runtime needs of a device. Names no library: CUDA is in ``cuda``, the tests have a fake.

Work is put on a stream and happens later, in the order of the stream. Addresses are plain numbers.
Buffers free themselves when nothing refers to them any more, which waits for the device; whoever
drops one has to make sure that no work that still uses it is only *about to be* put on a stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Device",
    "DeviceBuffer",
    "DeviceProperties",
    "Event",
    "Graph",
    "HostBuffer",
    "Stream",
]


@dataclass(frozen=True)
class DeviceProperties:
    """What the runtime decides by.

    Attributes:
        name: as the driver says.
        sm: compute capability, major * 10 + minor.
        ordinal: number of the device.
        memory_bytes: all of its memory.
        maps_host_memory: host and device share their memory, and pinned memory can be mapped: a
            kernel reads and writes the host's buffer, and there is nothing to copy.
        dlpack_type: device type in DLPack's numbering.
        driver: version of the driver's CUDA, as in ``13.0``.
    """

    name: str
    sm: int
    ordinal: int
    memory_bytes: int
    maps_host_memory: bool
    dlpack_type: int
    driver: str


class DeviceBuffer(Protocol):
    """Memory of the device."""

    @property
    def address(self) -> int:
        """Where it starts, for the device."""
        ...

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...


class HostBuffer(Protocol):
    """Pinned memory of the host."""

    @property
    def content(self) -> NDArray[np.uint8]:
        """The bytes, for the host."""
        ...

    @property
    def host_address(self) -> int:
        """Where it starts, for the host."""
        ...

    @property
    def device_address(self) -> int:
        """Where it starts, for the device; 0 if the buffer is not mapped."""
        ...


class Stream(Protocol):
    """A queue of work."""

    @property
    def handle(self) -> int:
        """As native libraries want it."""
        ...

    def synchronize(self) -> None:
        """Wait until everything on it has happened.

        Raises:
            BackendError: something on it failed.
        """
        ...

    def wait_for(self, event: Event) -> None:
        """Later work on this stream happens after the event."""
        ...


class Event(Protocol):
    """A mark on a stream."""

    def record(self, stream: Stream) -> None:
        """Set the mark behind the work that the stream has now.

        Of a stream that records, an event with timing becomes part of the recording: every launch
        sets it. Wait for the launch in another way before its time is read.
        """
        ...

    def synchronize(self) -> None:
        """Wait until the mark is reached; at once if it was never set."""
        ...

    def milliseconds_since(self, start: Event) -> float:
        """Time on the device between two marks that are both reached."""
        ...


class Graph(Protocol):
    """Work that was recorded once and is put on a stream in one call."""

    def launch(self, stream: Stream) -> None:
        """Put all of it on the stream."""
        ...


class Device(Protocol):
    """One device. Every method may raise ``BackendError`` with the failed call and a next step."""

    @property
    def properties(self) -> DeviceProperties:
        """What kind of device it is."""
        ...

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Device memory with any content, aligned for every type."""
        ...

    def allocate_host(self, nbytes: int, *, mapped: bool) -> HostBuffer:
        """Pinned host memory; ``mapped`` also gives it an address on the device."""
        ...

    def new_stream(self) -> Stream:
        """A stream that does not wait for the default stream."""
        ...

    def stream_from_handle(self, handle: int) -> Stream:
        """A stream that somebody else owns."""
        ...

    def new_event(self, *, timing: bool = False) -> Event:
        """An event; without timing it is cheaper."""
        ...

    def copy_in(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """Copy from a host address to a device address."""
        ...

    def copy_out(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """Copy from a device address to a host address."""
        ...

    def copy_within(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """Copy from a device address to another."""
        ...

    def fill(self, target: int, value: int, nbytes: int, stream: Stream) -> None:
        """Set bytes of device memory."""
        ...

    def begin_capture(self, stream: Stream) -> None:
        """From now on the stream records and does nothing."""
        ...

    def end_capture(self, stream: Stream) -> Graph:
        """Stop recording.

        Raises:
            BackendError: what was put on the stream cannot be recorded. The stream works again.
        """
        ...
