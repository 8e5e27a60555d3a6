"""Full attention in numpy, in float64, one head of one batch entry at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["unmasked_attention"]

_Array = NDArray[np.floating]
_Wide = NDArray[np.float64]


def _multiplied(x: _Array | _Wide, accuracy_level: int) -> _Wide:
    """Numbers as they are multiplied: level 3 rounds to bfloat16, halves to even."""
    if accuracy_level != 3:
        return x.astype(np.float64)
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    wide: _Wide = rounded.astype(np.uint32).view(np.float32).astype(np.float64)
    return np.where(np.isnan(x), np.nan, wide)


def unmasked_attention(
    query: _Array,
    key: _Array,
    value: _Array,
    bias: _Array,
    bias_index: NDArray[np.int64],
    *,
    num_heads: int,
    scale: float,
    accuracy_level: int = 1,
) -> _Array:
    """Compute the operator.

    Args:
        query: [B, S, H*Dh].
        key: [B, K, H*Dh].
        value: [B, K, H*Dh].
        bias: [N, J, T, U], J is H or 1, (T, U) is (S, K) or (1, 1).
        bias_index: int64 [M], numbers below N; B is a multiple of M.
        num_heads: H.
        scale: factor on the scores.
        accuracy_level: 1 takes numbers as they are, 3 rounds what is multiplied (spec.py).

    Returns:
        [B, S, H*Dh] in the type of the query.
    """
    depth = query.shape[2] // num_heads
    rows_scaled = query * np.float32(scale * np.log2(np.e))
    y = np.zeros(query.shape)
    for entry in range(query.shape[0]):
        of_entry = bias[bias_index[entry % len(bias_index)]].astype(np.float64)
        for head in range(num_heads):
            own = slice(head * depth, (head + 1) * depth)
            rows, keys, values = (
                _multiplied(x[entry, :, own], accuracy_level) for x in (rows_scaled, key, value)
            )
            scores = rows @ keys.T + of_entry[head if len(of_entry) > 1 else 0] * np.log2(np.e)
            weights = np.exp2(scores - scores.max(axis=-1, keepdims=True))
            mixed = _multiplied(weights, accuracy_level) @ values
            y[entry, :, own] = mixed / weights.sum(axis=-1, keepdims=True)
    return y.astype(query.dtype)
