"""Small files in which Linux says what a machine does."""

from __future__ import annotations

from pathlib import Path

__all__ = ["read_number", "read_text"]


def read_text(path: Path) -> str | None:
    """What a file says, without blanks around it; None if it is not there, unreadable or empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def read_number(path: Path) -> float | None:
    """The number that a file holds; None if it holds none."""
    text = read_text(path)
    try:
        return float(text) if text else None
    except ValueError:
        return None
