"""How many cores other processes, and the host, kept busy meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["ForeignLoad", "busy_s"]


class ForeignLoad:
    """A context manager; `cores` is 0 until it is left, and where the system does not say."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self.cores = 0.0

    def __enter__(self) -> ForeignLoad:
        """Begin."""
        self._begin = time.monotonic(), busy_s(), _own_s()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        wall, busy, own = self._begin
        foreign = (busy_s() - busy) - (_own_s() - own)
        self.cores = max(0.0, foreign / max(time.monotonic() - wall, 1e-9))


def busy_s() -> float:
    """Seconds of all cores that were not idle since the machine started, stolen ones included.

    0 on a system without ``/proc/stat``.
    """
    try:
        text = Path("/proc/stat").read_text(encoding="ascii")
    except OSError:
        return 0.0
    fields = text.split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
