"""Cached causal attention in plain numpy: the meaning, in float64, one head group at a time.

The S new rows stand at positions past_length .. past_length + S - 1. Query and key are rotated in
LLaMA's half-split form: with (a, b) the two halves of a head's vector,
(a, b) -> (a cos - b sin, b cos + a sin). Row i sees cache rows 0 .. past_length + i.

Source: "RoFormer" (Su et al., 2021) for the rotation; the half-split pairing is LLaMA's in the
transformers library (`apply_rotary_pos_emb`), re-derived here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["cached_attention"]

_Array = NDArray[np.floating]


def _rotate(rows_bhsd: _Array, cos: _Array, sin: _Array) -> _Array:
    first, second = np.split(rows_bhsd, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def cached_attention(
    query: _Array,
    key: _Array,
    value: _Array,
    past_key: _Array,
    past_value: _Array,
    past_length: NDArray[np.int64],
    cos: _Array,
    sin: _Array,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
) -> tuple[_Array, _Array, _Array]:
    """Compute the operator.

    Args:
        query: [B, S, H*Dh].
        key: [B, S, KV*Dh].
        value: [B, S, KV*Dh].
        past_key: [B, KV, C, Dh]; not changed.
        past_value: [B, KV, C, Dh]; not changed.
        past_length: int64 [1].
        cos: [R, Dh/2].
        sin: [R, Dh/2].
        num_heads: H.
        kv_num_heads: KV.
        scale: factor on the scores.

    Returns:
        attention [B, S, H*Dh] and the new buffers [B, KV, C, Dh], in the inputs' dtypes.

    Raises:
        ValueError: the new rows do not fit into the buffer.
    """
    batch, length, width = query.shape
    depth = width // num_heads
    start = int(past_length[0])
    end = start + length
    if end > past_key.shape[2]:
        raise ValueError(f"{end} rows do not fit into a cache of {past_key.shape[2]} rows")

    def heads(rows: _Array, count: int) -> _Array:
        return rows.astype(np.float64).reshape(batch, length, count, depth).transpose(0, 2, 1, 3)

    angles = cos[start:end].astype(np.float64), sin[start:end].astype(np.float64)
    queries = _rotate(heads(query, num_heads), *angles)
    present_key, present_value = past_key.astype(np.float64), past_value.astype(np.float64)
    present_key[:, :, start:end] = _rotate(heads(key, kv_num_heads), *angles)
    present_value[:, :, start:end] = heads(value, kv_num_heads)

    attention = np.zeros((batch, num_heads, length, depth))
    group = num_heads // kv_num_heads
    for head in range(num_heads):
        for row in range(length):
            visible = start + row + 1
            keys = present_key[:, head // group, :visible]  # [B, visible, Dh]
            scores = np.einsum("bd,bvd->bv", queries[:, head, row], keys) * scale
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            values = present_value[:, head // group, :visible]
            attention[:, head, row] = np.einsum("bv,bvd->bd", weights, values)
    merged = attention.transpose(0, 2, 1, 3).reshape(batch, length, width)
    return (
        merged.astype(query.dtype),
        present_key.astype(past_key.dtype),
        present_value.astype(past_value.dtype),
    )
