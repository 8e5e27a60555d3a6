"""The file that a measurement leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["write_report"]


def write_report(path: Path, content: object) -> None:
    """Write plain JSON types to a file; its folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
