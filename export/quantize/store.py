"""Quantised weights on disk: one safetensors file per layer, read one matrix at a time.

A file is written under another name and renamed when it is complete. Its header carries the key of
everything that its numbers depend on, so a file of another run is never taken for one of this.
Matrices carry their official names; a quantised one is stored as `NAME|weight`, `NAME|scales` and,
where it has one, `NAME|zero_offset`. What no file holds (the final norm, a head in float32) comes
from the source.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.llm.decoder_weights import BlockLinear, DenseLinear, DenseWeights
from visionllm_edge.export.quantize.matrix import BlockQuantized

if TYPE_CHECKING:
    from visionllm_edge.export.llm.weights import LlmWeights

__all__ = ["QuantizedStore", "Stored", "is_complete", "write_file"]

_KEY, _BLOCKS = "key", "blocks"

Stored = Mapping[str, "BlockQuantized | NDArray[np.float32]"]


def write_file(path: Path, key: str, content: Stored) -> None:
    """Write matrices and norms; the file appears complete or not at all."""
    arrays: dict[str, NDArray[np.generic]] = {}
    blocks: dict[str, list[int]] = {}
    for name, value in content.items():
        if not isinstance(value, BlockQuantized):
            arrays[name] = np.ascontiguousarray(value)
            continue
        arrays[f"{name}|weight"], arrays[f"{name}|scales"] = value.weight, value.scales
        if value.zero_offset is not None:
            arrays[f"{name}|zero_offset"] = value.zero_offset
        blocks[name] = [value.bits, value.block_size]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(arrays, partial, {_KEY: key, _BLOCKS: json.dumps(blocks)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def is_complete(path: Path, key: str) -> bool:
    """Whether a file is there, undamaged in its length, and of this run."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get(_KEY) == key
    except (SafetensorError, OSError):
        return False


@dataclass(frozen=True)
class _Place:
    """Where a matrix or norm is, and how it is stored; `bits` is 0 for float32."""

    path: Path
    shape: tuple[int, ...]
    bits: int = 0
    block_size: int = 0
    asymmetric: bool = False


class QuantizedStore:
    """Quantised weights of a decoder; implements `DecoderWeights`.

    Args:
        source: what was quantised; gives what the files do not hold.
        files: complete ones.
    """

    def __init__(self, source: LlmWeights, files: list[Path]) -> None:
        """Read the headers."""
        self._source = source
        self._dense = DenseWeights(source)
        self._places: dict[str, _Place] = {}
        for path in files:
            self._places |= _places(path)

    @property
    def config(self) -> LlmConfig:
        """Sizes."""
        return self._source.config

    def norm(self, name: str) -> NDArray[np.float32]:
        """See `DecoderWeights`."""
        return self._array(name) if name in self._places else self._dense.norm(name)

    def linear(self, names: tuple[str, ...]) -> DenseLinear | BlockLinear:
        """See `DecoderWeights`."""
        if not any(name in self._places for name in names):
            return self._dense.linear(names)
        places = [self._places[name] for name in names]
        rows, columns = sum(place.shape[0] for place in places), places[0].shape[1]
        first = places[0]
        if not first.bits:
            return DenseLinear(
                rows, columns, lambda: np.concatenate([self._array(name).T for name in names], 1)
            )
        return BlockLinear(
            rows=rows,
            columns=columns,
            bits=first.bits,
            block_size=first.block_size,
            asymmetric=any(place.asymmetric for place in places),
            load=lambda: BlockQuantized.stack([self.matrix(name) for name in names]),
        )

    def matrix(self, name: str) -> BlockQuantized:
        """One quantised matrix."""
        place = self._places[name]
        with safe_open(place.path, framework="numpy") as file:
            return BlockQuantized(
                file.get_tensor(f"{name}|weight"),
                file.get_tensor(f"{name}|scales"),
                place.bits,
                place.block_size,
                file.get_tensor(f"{name}|zero_offset") if place.asymmetric else None,
            )

    def _array(self, name: str) -> NDArray[np.float32]:
        with safe_open(self._places[name].path, framework="numpy") as file:
            array: NDArray[np.float32] = file.get_tensor(name)
        return array


def _places(path: Path) -> dict[str, _Place]:
    places = {}
    with safe_open(path, framework="numpy") as file:
        blocks: dict[str, list[int]] = json.loads(file.metadata()[_BLOCKS])
        keys = set(file.keys())
        for key in keys:
            name, _, part = key.partition("|")
            shape = tuple(file.get_slice(key).get_shape())
            if not part:
                places[name] = _Place(path, shape)
            elif part == "scales":
                bits, block_size = blocks[name]
                shape = shape[0], shape[1] * block_size
                asymmetric = f"{name}|zero_offset" in keys
                places[name] = _Place(path, shape, bits, block_size, asymmetric)
    return places
