"""Memory that is taken once and kept: staging for one port, and a pool for results that are kept.

Everything here is used by the work of one stream, which is what makes reuse safe: later work on the
stream happens after the earlier work that still reads the memory.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.device.base import Device, DeviceBuffer, HostBuffer

__all__ = ["BufferPool", "Lane", "PooledBuffer"]

# Sizes are rounded up to this, so that small changes of a shape do not allocate again.
_GRAIN_BYTES = 4096
_GROWTH = 1.5
# Released buffers that one place may hold on to: pictures come and go one at a time.
_KEPT_PER_PLACE = 2


class Lane:
    """One port's way between host and device: pinned memory, and its counterpart on the device.

    On a device that maps host memory both are the same bytes and nothing is copied. Growing drops
    the old memory: the caller waits for the stream first.
    """

    def __init__(self, device: Device, *, on_host: bool = False) -> None:
        """Take no memory yet.

        Args:
            device: where the counterpart stands.
            on_host: the work reads or writes host memory itself, as for TensorRT's shape inputs.
        """
        self._device = device
        self._mapped = device.properties.maps_host_memory
        self._on_host = on_host
        self._host: HostBuffer | None = None
        self._buffer: DeviceBuffer | None = None

    @property
    def copies(self) -> bool:
        """Whether bytes have to be copied between the two."""
        return not (self._mapped or self._on_host)

    @property
    def nbytes(self) -> int:
        """Pinned memory taken; as much again on the device where bytes are copied."""
        return 0 if self._host is None else int(self._host.content.nbytes)

    def reserve(self, nbytes: int) -> None:
        """Make room for that many bytes; what is in the lane may get lost."""
        if self._host is not None and self._host.content.nbytes >= nbytes:
            return
        if self._host is not None:
            nbytes = max(nbytes, int(self._host.content.nbytes * _GROWTH))
        nbytes = -(-max(nbytes, 1) // _GRAIN_BYTES) * _GRAIN_BYTES
        # First the old memory goes, then the new is taken: both at once may not fit.
        self._host = self._buffer = None
        host = self._device.allocate_host(nbytes, mapped=self._mapped and not self._on_host)
        if self.copies:
            self._buffer = self._device.allocate(nbytes)
        self._host = host

    @property
    def content(self) -> NDArray[np.uint8]:
        """The bytes on the host."""
        assert self._host is not None, "reserve() first"
        return self._host.content

    @property
    def host_address(self) -> int:
        """Of the bytes on the host."""
        assert self._host is not None, "reserve() first"
        return self._host.host_address

    @property
    def address(self) -> int:
        """What the work is given."""
        assert self._host is not None, "reserve() first"
        if self._on_host:
            return self._host.host_address
        if self._buffer is not None:
            return self._buffer.address
        return self._host.device_address


class PooledBuffer:
    """Device memory on loan from a pool, to which it returns when nothing refers to it."""

    def __init__(self, pool: BufferPool, place: Hashable, buffer: DeviceBuffer) -> None:
        """Take over a buffer."""
        self._pool = pool
        self._place = place
        self._buffer = buffer
        self._exported = False

    @property
    def address(self) -> int:
        """Where it starts."""
        return self._buffer.address

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self._buffer.nbytes

    def mark_exported(self) -> None:
        """Another library has seen the address: its work on other streams may outlive its array.

        Such memory is freed, which waits for the device, and never used again by the pool.
        """
        self._exported = True

    def __del__(self) -> None:
        """Return."""
        if not self._exported:
            self._pool.give_back(self._place, self._buffer)


class BufferPool:
    """Buffers by place: who asks again from the same place gets the same memory again.

    Equal addresses are what a recorded graph needs to be of use.
    """

    def __init__(self, device: Device) -> None:
        """Start empty."""
        self._device = device
        self._free: dict[Hashable, list[DeviceBuffer]] = {}

    def take(self, place: Hashable, nbytes: int) -> PooledBuffer:
        """A buffer of at least that many bytes."""
        # A buffer may come back while this runs, from another thread or from a collection of
        # garbage in this one, so each is taken out before it is looked at.
        free = self._free.setdefault(place, [])
        too_small: list[DeviceBuffer] = []
        while (buffer := _popped(free)) is not None:
            if buffer.nbytes >= nbytes:
                free[:0] = too_small
                return PooledBuffer(self, place, buffer)
            too_small.append(buffer)
        too_small.clear()
        rounded = -(-max(nbytes, 1) // _GRAIN_BYTES) * _GRAIN_BYTES
        return PooledBuffer(self, place, self._device.allocate(rounded))

    def give_back(self, place: Hashable, buffer: DeviceBuffer) -> None:
        """Keep a buffer for the next one who asks from that place."""
        free = self._free.setdefault(place, [])
        free.append(buffer)
        del free[:-_KEPT_PER_PLACE]


def _popped(buffers: list[DeviceBuffer]) -> DeviceBuffer | None:
    """The first, which is in the list no longer; None if there is none."""
    try:
        return buffers.pop(0)
    except IndexError:
        return None
