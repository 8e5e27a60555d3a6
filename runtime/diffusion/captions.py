"""Captions as the generator was trained on them."""

from __future__ import annotations

import re

__all__ = ["training_caption"]

_REMOVED = re.compile(r"[.!\"()*#:;~]")


def training_caption(text: str) -> str:
    """In lower case, without the punctuation that training removed, with single spaces.

    Source: VisionLLM v2 (arXiv 2406.08394), preparation of captions for generation. Commas stay.
    """
    return " ".join(_REMOVED.sub(" ", text.lower()).split())
