"""How fast this machine reads its memory: the limit of a decoder that reads every weight per token.

The buffer is much larger than a core's caches, lies in huge pages where the system gives them, and
is summed by all threads at once, a part each. The best of several passes counts: other work only
takes away. (A reader in AVX-512 with prefetching, written for comparison, was not faster than
NumPy's sum.) A virtual machine's host may hold the buffer in a cache of its own; the weights of a
model of that size are then read at the same pace.
"""

from __future__ import annotations

import mmap
import threading
import time
from dataclasses import asdict, dataclass

import numpy as np

__all__ = ["Bandwidth", "measure_read_bandwidth"]

_HUGE_PAGE_BYTES = 2 << 20
_BUFFER_BYTES = 640 << 20
_PASSES = 12


@dataclass(frozen=True)
class Bandwidth:
    """A measured read bandwidth.

    Attributes:
        bytes_per_s: of the best pass.
        threads: that read at once.
        huge_pages: whether the system can be asked for them.
    """

    bytes_per_s: float
    threads: int
    huge_pages: bool

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return asdict(self)


def measure_read_bandwidth(
    threads: int, *, buffer_bytes: int = _BUFFER_BYTES, passes: int = _PASSES
) -> Bandwidth:
    """Read a buffer with all threads, several times.

    Args:
        threads: how many read at once.
        buffer_bytes: taken for the time of the measurement.
        passes: the best one counts.
    """
    # Private: only such pages become huge ones by advice.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, buffer_bytes + _HUGE_PAGE_BYTES, flags=flags) as memory:
        huge = _ask_for_huge_pages(memory)
        words = np.frombuffer(memory, dtype=np.uint64)
        start = -words.ctypes.data % _HUGE_PAGE_BYTES // words.itemsize
        words = words[start : start + buffer_bytes // words.itemsize]
        words.fill(1)  # pages that were never written are all the same one
        parts = np.array_split(words, threads)
        seconds = min(_pass(parts) for _ in range(passes))
        size = words.nbytes
        del words, parts  # the mapping cannot be closed while they look at it
    return Bandwidth(size / seconds, threads, huge)


def _pass(parts: list[np.ndarray]) -> float:
    """Seconds from the first thread's start to the last one's end."""
    together = threading.Barrier(len(parts))
    begins: list[float] = []
    ends: list[float] = []

    def work(part: np.ndarray) -> None:
        together.wait()
        begins.append(time.perf_counter())
        part.sum()  # gives up the interpreter's lock
        ends.append(time.perf_counter())

    workers = [threading.Thread(target=work, args=(part,)) for part in parts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(ends) - min(begins)


def _ask_for_huge_pages(memory: mmap.mmap) -> bool:
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return False
    try:
        memory.madvise(advice)
    except OSError:
        return False
    return True
