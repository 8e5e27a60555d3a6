"""Buffers of a pool: who gets which, also when one comes back in the middle of the search."""

from __future__ import annotations

from typing import Any

from tests.runtime.device.fake import FakeDevice
from visionllm_edge.runtime.device.memory import BufferPool


def test_the_first_that_fits_and_the_small_ones_stay() -> None:
    device = FakeDevice()
    pool = BufferPool(device)
    small, large = pool.take("x", 10), pool.take("x", 9000)
    addresses = small.address, large.address
    del small, large
    taken = pool.take("x", 9000)
    assert taken.address == addresses[1]
    assert pool.take("x", 10).address == addresses[0]
    assert pool.take("y", 10).address not in addresses


def test_what_is_too_small_goes_before_more_is_taken() -> None:
    device = FakeDevice()
    pool = BufferPool(device)
    pool.take("x", 10)
    assert device.taken_bytes == 4096
    held = pool.take("x", 9000)
    assert device.taken_bytes == held.nbytes == 12288


def test_a_buffer_that_comes_back_during_the_search_moves_none_of_the_others() -> None:
    device = FakeDevice()
    pool = BufferPool(device)

    class Watched:
        """A buffer whose size is asked for while another comes back."""

        def __init__(self, nbytes: int) -> None:
            self.address, self._nbytes = nbytes, nbytes

        @property
        def nbytes(self) -> int:
            pool.give_back("x", Plain(7))
            pool.give_back("x", Plain(8))
            return self._nbytes

    class Plain:
        def __init__(self, nbytes: int) -> None:
            self.address = self.nbytes = nbytes

    watched: Any = Watched(100)
    pool.give_back("x", Plain(50))
    pool.give_back("x", watched)
    assert pool.take("x", 60).nbytes >= 60
