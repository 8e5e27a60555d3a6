"""Full attention in numpy, in float64, one head of one batch entry at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["unmasked_attention"]

_Array = NDArray[np.floating]


def unmasked_attention(
    query: _Array,
    key: _Array,
    value: _Array,
    bias: _Array,
    bias_index: NDArray[np.int64],
    *,
    num_heads: int,
    scale: float,
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

    Returns:
        [B, S, H*Dh] in the type of the query.
    """
    depth = query.shape[2] // num_heads
    y = np.zeros(query.shape)
    for entry in range(query.shape[0]):
        of_entry = bias[bias_index[entry % len(bias_index)]].astype(np.float64)
        for head in range(num_heads):
            own = slice(head * depth, (head + 1) * depth)
            rows, keys, values = (x[entry, :, own].astype(np.float64) for x in (query, key, value))
            scores = rows @ keys.T * scale + of_entry[head if len(of_entry) > 1 else 0]
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            y[entry, :, own] = weights / weights.sum(axis=-1, keepdims=True) @ values
    return y.astype(query.dtype)
