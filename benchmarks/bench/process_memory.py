"""What this process holds in memory, and the most it held while one thing ran."""

from __future__ import annotations

import resource
from pathlib import Path

__all__ = ["peak_bytes", "peak_since_reset", "reset_peak"]

_RESET_PEAK = "5"


def peak_bytes() -> int:
    """Most resident memory of the process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> bool:
    """Forget the highest mark; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def peak_since_reset() -> int | None:
    """Most resident memory since `reset_peak`; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in lines.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
