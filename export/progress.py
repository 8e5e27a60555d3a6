"""Progress of a long command: one line per step on stderr, with the seconds it took."""

from __future__ import annotations

import sys
import time

__all__ = ["Progress"]


class Progress:
    """Prints finished steps.

    Args:
        total: number of steps, 0 if unknown.
        silent: print nothing.
    """

    def __init__(self, total: int = 0, *, silent: bool = False) -> None:
        """Start the clock."""
        self.total = total
        self._silent = silent
        self._done = 0
        self._start = self._last = time.monotonic()

    def step(self, text: str, *, seconds: float | None = None) -> None:
        """Report a finished step.

        Args:
            text: what was done.
            seconds: how long it took; since the last step if not given.
        """
        now = time.monotonic()
        took = now - self._last if seconds is None else seconds
        self._last = now
        self._done += 1
        count = f"[{self._done:>2}/{self.total}]" if self.total else f"[{self._done}]"
        self._print(f"{count} {text} ({took:.1f} s)")

    def note(self, text: str) -> None:
        """Print a line that is no step."""
        self._print(text)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def _print(self, text: str) -> None:
        if not self._silent:
            print(text, file=sys.stderr, flush=True)
