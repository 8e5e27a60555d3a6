"""Progress of a build on a device: lines on stderr, and only a few for a phase that takes long."""

from __future__ import annotations

import sys
import time

__all__ = ["BuildProgress"]

_QUIET_S = 10.0
"""A phase line appears when nothing was printed for this long: engines take seconds to an hour."""


class BuildProgress:
    """Prints finished steps, and what the builder is doing when a step takes long.

    Args:
        total: number of steps, 0 if unknown.
        silent: print nothing.
    """

    def __init__(self, total: int = 0, *, silent: bool = False) -> None:
        """Start the clock."""
        self.total = total
        self._silent = silent
        self._done = 0
        self._start = self._last_line = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def step(self, text: str) -> None:
        """Report a finished step."""
        self._done += 1
        self._print(f"[{self._done:>2}/{self.total}] {text}" if self.total else text)

    def note(self, text: str) -> None:
        """Print a line that is no step."""
        self._print(text)

    def phase(self, stage: str, phase: str, done: int, total: int) -> None:
        """Say where the builder is, unless a line was printed a moment ago."""
        if time.monotonic() - self._last_line >= _QUIET_S:
            share = f" {done}/{total}" if total else ""
            self._print(f"        {stage}: {phase}{share}")

    def _print(self, text: str) -> None:
        self._last_line = time.monotonic()
        if not self._silent:
            print(text, file=sys.stderr, flush=True)
