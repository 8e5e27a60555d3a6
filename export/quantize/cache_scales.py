"""What a cache of int8 must hold: the largest keys and values of every channel, layer by layer.

The sequences run through the layers that the graph will have (dequantised where they are in blocks:
a scale search moves factors into the values), one layer in memory at a time. A rotation turns the
two halves of a channel into each other, so both get the range of their pair's norm, which no
position changes.

A stopped run goes on where it was: the ranges so far and the hidden states in front of the next
layer lie in one file, which carries the key of all that they depend on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.llm.decoder_weights import (
    BlockLinear,
    DecoderWeights,
    layer_linears,
    layer_norms,
    matrix_shape,
)
from visionllm_edge.export.quantize.layer import NORMS, LayerRunner
from visionllm_edge.export.quantize.store import is_complete, write_file

if TYPE_CHECKING:
    from visionllm_edge.export.quantize.calibration import Calibration

__all__ = ["LARGEST_CODE", "MARGIN", "Scales", "measure_cache_scales", "scales_of"]

MARGIN = 1.1
"""On the largest magnitudes. With SmolLM2 a cache of int8 diverges from the model by 0.0015
nats at 0.9, 0.0012 at 1.0, 0.0013 at 1.1, 0.0018 at 1.25 and 0.0043 at 2 (2048 tokens of a novel
that the calibration lacks; a quarter of the channels go beyond their ranges there). Too narrow is
worse than too wide: 0.013 at 0.75."""
LARGEST_CODE = 127

_SMALLEST_SHARE = 2.0**-8
# Below float16's smallest normal number a scale in half precision would lose its digits.
_SMALLEST_SCALE = float(np.finfo(np.float16).tiny)
_FILE = "cache_ranges.safetensors"
_STATES = "states_"

Float = NDArray[np.float32]
Pair = tuple[Float, Float]
Scales = list[Pair]
Note = Callable[[str], None]


def measure_cache_scales(
    weights: DecoderWeights,
    config: LlmConfig,
    calibration: Calibration,
    folder: Path,
    *,
    source: str,
    progress: Note = lambda text: None,
) -> Scales:
    """Scales of keys (behind their rotation) and values of every layer, [KV,Dh] each.

    Args:
        weights: that the graph will have.
        config: sizes.
        calibration: sequences, and the openings of conversations.
        folder: for the work of a run that may be stopped; made if it is not there.
        source: says what the weights are, and our code (`weights_key`); work of another one is not
            taken.
        progress: gets a line per layer.
    """
    sequences = (*calibration.sequences, *calibration.openings)
    path, key = folder / _FILE, _key(source, sequences)
    layers = config.num_hidden_layers
    ranges: list[Pair] = []
    states = [torch.from_numpy(np.array(rows, np.float32)) for rows in sequences]
    if is_complete(path, key):
        ranges, states = _stored(path, len(sequences))
        progress(f"cache: ranges of {len(ranges)} of {layers} layers are there already")
    runner = LayerRunner(config, max(len(rows) for rows in sequences))
    for layer in range(len(ranges), layers):
        matrices = _read_layer(weights, config, layer)
        seen = _Largest(config, matrices)
        states = [runner.run(matrices, rows, seen.watch) for rows in states]
        ranges.append((seen.keys.numpy(), seen.values.numpy()))
        write_file(path, key, _content(ranges, states if layer < layers - 1 else []))
        progress(f"cache: ranges of layer {layer + 1} of {layers}")
    return [scales_of(keys, values) for keys, values in ranges]


def scales_of(keys: Float, values: Float, margin: float = MARGIN) -> Pair:
    """What a whole number stands for, from the largest magnitude of every channel [KV,Dh]."""
    return _scale(keys, margin), _scale(values, margin)


def _scale(largest: Float, margin: float) -> Float:
    """A channel that the sequences never used gets a small share of its head's range."""
    floor = largest.max(axis=-1, keepdims=True) * _SMALLEST_SHARE
    scale: Float = np.maximum(largest, floor) * np.float32(margin / LARGEST_CODE)
    return np.maximum(scale, np.float32(_SMALLEST_SCALE))


class _Largest:
    """Watches what a layer's first linear reads, and keeps what its keys and values reach."""

    def __init__(self, config: LlmConfig, matrices: dict[str, Tensor]) -> None:
        shape = config.num_key_value_heads, config.head_dim
        self._key, self._value = matrices["k_proj"], matrices["v_proj"]
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)

    def watch(self, name: str, rows: Tensor) -> None:
        if name != "qkv":
            return
        keys, values = ((rows @ m.T).view(-1, *self.keys.shape) for m in (self._key, self._value))
        norms = torch.hypot(*keys.chunk(2, dim=-1)).amax(dim=0)
        self.keys = torch.maximum(self.keys, torch.cat([norms, norms], dim=-1))
        self.values = torch.maximum(self.values, values.abs().amax(dim=0))


def _read_layer(weights: DecoderWeights, config: LlmConfig, layer: int) -> dict[str, Tensor]:
    """All tensors of a layer in float32, by short name."""
    out = {
        short: torch.from_numpy(np.array(weights.norm(name)))
        for short, name in zip(NORMS, layer_norms(layer), strict=True)
    }
    for names in layer_linears(layer).values():
        linear = weights.linear(names)
        matrix = linear.load().dequantize() if isinstance(linear, BlockLinear) else linear.load().T
        start = 0
        for name in names:
            rows = matrix_shape(config, name)[0]
            out[name.split(".")[-2]] = torch.from_numpy(matrix[start : start + rows])
            start += rows
    return out


def _content(ranges: Sequence[Pair], states: Sequence[Tensor]) -> dict[str, Float]:
    content = {}
    for layer, pair in enumerate(ranges):
        for kind, array in zip(("key", "value"), pair, strict=True):
            content[f"{layer}.{kind}"] = array
    return content | {f"{_STATES}{i}": rows.numpy() for i, rows in enumerate(states)}


def _stored(path: Path, sequences: int) -> tuple[list[Pair], list[Tensor]]:
    """Ranges of the layers that are done, and the hidden states behind them."""
    content = load_file(path)
    count = sum(name.endswith(".key") for name in content)
    ranges = [(content[f"{layer}.key"], content[f"{layer}.value"]) for layer in range(count)]
    names = [f"{_STATES}{i}" for i in range(sequences)]
    # The states behind the last layer are not kept.
    return ranges, [torch.from_numpy(content[name]) for name in names if name in content]


def _key(source: str, sequences: Sequence[Float]) -> str:
    digest = hashlib.sha256()
    for rows in sequences:
        digest.update(f"{rows.shape}".encode())
        digest.update(np.ascontiguousarray(rows).data)
    digest.update(source.encode())
    return digest.hexdigest()
