"""The time spent inside a model, and nothing else."""

from __future__ import annotations

import time

__all__ = ["Clock"]


class Clock:
    """Adds up what happens inside ``with clock:``; see ``total_s``."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.total_s = 0.0

    def __enter__(self) -> None:
        """Begin to count."""
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        """Stop counting."""
        self.total_s += time.perf_counter() - self._start
