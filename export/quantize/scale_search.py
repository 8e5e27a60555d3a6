"""Activation-aware scales: which input channels of a linear get a finer grid.

Multiplying a channel's weights by s and dividing what is fed to it by s changes nothing, but makes
the rounding error that meets this channel's activations smaller by s; at the cost of a coarser step
for the rest of the block if the channel becomes its largest. Scales are powers of the channel's
mean activation, with and without the mean weight in the denominator; the power is searched for with
the error of the linear's output on sampled rows. The division is folded into what stands before:

==========  =====================================  ===========================================
linear      what its inputs come from              folded into
==========  =====================================  ===========================================
`qkv`       the norm before the attention          the norm's factors
`o`         the values, mixed over rows            rows of `v_proj`
`gate_up`   the norm before the MLP                the norm's factors
`down`      silu(gate) times up                    rows of `up_proj`
==========  =====================================  ===========================================

With grouped queries several heads of `o` read one head of the values: their channels share a scale.

Source: AWQ, arXiv 2306.00978.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.quantize.activations import LinearInput
from visionllm_edge.export.quantize.layer import LINEARS, Matrices

__all__ = ["Found", "fold", "search_scales", "shared_channels"]

STEPS = 20
"""Powers tried between 0 and 1."""

_SAMPLED_OUTPUTS = 512
_DIVISOR = 7.5
"""Of the largest weight of a block, for its step while scales are compared. To try several, as the
final rounding does, takes five times as long and moves all candidates alike."""

Float = NDArray[np.float32]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """Result of a search.

    Attributes:
        scales: per scale channel.
        error: of the sampled outputs with them, relative to the error without.
        power: of the activations.
        by_weight: whether the weights are in the denominator.
    """

    scales: Float
    error: float
    power: float
    by_weight: bool


def shared_channels(config: LlmConfig, linear: str) -> Index:
    """The scale channel of each input channel [K]: its own, but that of the values for `o`."""
    if linear != "o":
        columns = config.intermediate_size if linear == "down" else config.hidden_size
        return np.arange(columns)
    heads, width = config.num_attention_heads, config.head_dim
    group = heads // config.num_key_value_heads
    values = np.arange(heads)[:, None] // group * width + np.arange(width)
    return values.reshape(-1)


def search_scales(
    matrices: Sequence[Float], seen: LinearInput, share: Index, bits: int, block_size: int
) -> Found | None:
    """The best scales for the matrices [N,K] that read the same inputs.

    Args:
        matrices: float32.
        seen: their inputs on the calibration sequences.
        share: scale channel of each input channel [K].
        bits: of the codes.
        block_size: of the blocks; divides K.

    Returns:
        None if no scales are better than none.
    """
    assert bits == 4, "eight bits need no search"
    total = sum(len(matrix) for matrix in matrices)
    every = max(1, -(-total // _SAMPLED_OUTPUTS))
    weight = np.ascontiguousarray(np.concatenate([matrix[::every] for matrix in matrices]))
    largest = np.abs(weight).reshape(len(weight), -1, block_size).max(axis=-1, keepdims=True)
    relative = np.abs(weight).reshape(len(weight), -1, block_size) / np.maximum(largest, 1e-12)
    counts = np.bincount(share)
    activation = np.bincount(share, seen.size) / counts
    in_weight = np.bincount(share, relative.reshape(weight.shape).mean(axis=0)) / counts

    def error(scales: Float | None) -> float:
        changed = weight if scales is None else weight * scales[share]
        difference = _round(changed, block_size) - changed
        if scales is not None:
            difference /= scales[share]
        return float(np.square(seen.rows @ difference.T).sum(dtype=np.float64))

    plain = error(None)
    best: Found | None = None
    for scales, power, by_weight in _candidates(activation, in_weight):
        found = error(scales)
        if found < (plain if best is None else best.error * plain):
            best = Found(scales, found / plain, power, by_weight)
    return best


def _round(weight: Float, block_size: int) -> Float:
    """Weights as four bits stand for them."""
    blocks = weight.reshape(len(weight), -1, block_size)
    step = np.maximum(blocks.max(axis=-1), -blocks.min(axis=-1))[..., None] / np.float32(_DIVISOR)
    step = np.maximum(step, np.float32(1e-12))
    rounded = np.rint(blocks / step)
    np.clip(rounded, -8, 7, out=rounded)
    rounded *= step
    return np.asarray(rounded.reshape(weight.shape))


def _candidates(
    activation: NDArray[np.float64], in_weight: NDArray[np.float64]
) -> Iterator[tuple[Float, float, bool]]:
    activation = np.maximum(activation, 1e-3 * activation.mean() + 1e-12)
    in_weight = np.maximum(in_weight, 1e-3 * in_weight.mean() + 1e-12)
    for by_weight in (False, True):
        for step in range(0 if by_weight else 1, STEPS + 1):
            power = step / STEPS
            scales = activation**power
            if by_weight:
                scales = scales / in_weight ** (1 - power)
            scales = scales / np.sqrt(scales.max() * scales.min())
            yield scales.astype(np.float32), power, by_weight


def fold(layer: Matrices, linear: str, scales: Float, share: Index) -> None:
    """Change a layer's tensors so that a linear's inputs are divided by the scales.

    The layer computes what it did before, up to the rounding of float32.

    Args:
        layer: by short name; changed in place.
        linear: `qkv`, `o`, `gate_up` or `down`.
        scales: per scale channel.
        share: scale channel of each input channel.
    """
    divided = torch.from_numpy(scales)
    source = {
        "qkv": "input_layernorm",
        "o": "v_proj",
        "gate_up": "post_attention_layernorm",
        "down": "up_proj",
    }[linear]
    rows = layer[source]
    rows /= divided if rows.ndim == 1 else divided[:, None]
    for name in LINEARS[linear]:
        layer[name] *= torch.from_numpy(scales[share])
