"""Sequences of embeddings that stand for what the model will read: text, and pictures with answers.

They are what the activation-aware search measures errors on. A language model gets pieces of plain
text. A VisionLLM also gets scenes of the shapes world: image rows, questions, and answers with
their routing tokens and super-link rows, as its runtime would feed them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visionllm_edge.runtime.errors import ConfigError

if TYPE_CHECKING:
    from visionllm_edge.export.llm.weights import LlmWeights

__all__ = ["TEXT", "Calibration", "embed_ids", "text_calibration", "text_id"]

TEXT = Path(__file__).with_name("calibration.txt")
"""The text that is taken if none is named."""

SEQUENCES, LENGTH = 16, 256
"""Pieces of text, and tokens of each: all of them run through every layer. Pieces of twice the
length bring SmolLM2 in blocks of 32 no nearer to its unquantised self."""

_LEAST_TOKENS = 256

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """Sequences for the search.

    Attributes:
        sequences: embeddings [T,D] each, float32.
        origin: of the sequences, for reports.
        openings: further ones, with the tokens that stand first when the model is used; for ranges.
            What stands first in a sequence reaches farther than the rest.
    """

    sequences: tuple[Float, ...]
    origin: str
    openings: tuple[Float, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all numbers of the sequences; the openings are no part of it."""
        digest = hashlib.sha256()
        for rows in self.sequences:
            digest.update(f"{rows.shape}".encode())
            digest.update(np.ascontiguousarray(rows).data)
        return f"sha256:{digest.hexdigest()}"


def text_id(text: Path | None) -> str:
    """What sequences of text depend on besides the language model.

    Raises:
        ConfigError: no such file.
    """
    return hashlib.sha256(_read(text).encode()).hexdigest()


def text_calibration(
    weights: LlmWeights,
    encode: Callable[[str], Sequence[int]],
    text: Path | None = None,
    *,
    sequences: int = SEQUENCES,
    length: int = LENGTH,
) -> Calibration:
    """Pieces of a text, spread evenly over it.

    Args:
        weights: with the embedding table.
        encode: text -> ids, without a token put first.
        text: UTF-8; None for our own.
        sequences: number of pieces, fewer where the text is short.
        length: tokens of a piece, fewer where the model's context is shorter.

    Raises:
        ConfigError: no such file, or too little text in it.
    """
    ids = np.array(encode(_read(text)), np.int64)
    if len(ids) < _LEAST_TOKENS:
        raise ConfigError(
            f"calibration: expected a text of at least {_LEAST_TOKENS} tokens, got {len(ids)}. "
            "Name a longer one with --calibration-text."
        )
    length = min(length, weights.config.max_position_embeddings, len(ids))
    count = min(sequences, len(ids) // length)
    starts = np.linspace(0, len(ids) - length, count).astype(int)
    table = weights.tensor("model.embed_tokens.weight")
    pieces = tuple(embed_ids(table, ids[start : start + length]) for start in starts)
    return Calibration(pieces, f"{count} pieces of {(text or TEXT).name}, {length} tokens each")


def embed_ids(table: Tensor, ids: NDArray[np.int64]) -> Float:
    """Rows of the embedding table, float32."""
    rows: Float = table[torch.from_numpy(ids)].detach().float().numpy()
    return rows


def _read(text: Path | None) -> str:
    path = text or TEXT
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(
            f"calibration: '{path.name}' cannot be read as UTF-8 text ({e}). Name a text file."
        ) from e
