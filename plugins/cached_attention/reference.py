"""Cached causal attention in plain numpy: the meaning, in float64, one head group at a time.

The S new rows stand at positions past_length .. past_length + S - 1. Query and key are rotated in
LLaMA's half-split form: with (a, b) the two halves of a head's vector,
(a, b) -> (a cos - b sin, b cos + a sin). Row i sees cache rows 0 .. past_length + i, as the cache
holds them: rounded to its element type.

Source: "RoFormer" (Su et al., 2021) for the rotation; the half-split pairing is LLaMA's in the
transformers library (`apply_rotary_pos_emb`), re-derived here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["attend", "cached_attention", "rotate", "split_heads"]

_Array = NDArray[np.floating]


def split_heads(rows: _Array, count: int) -> _Array:
    """[B, S, count*Dh] -> [B, count, S, Dh] in float64."""
    batch, length, width = rows.shape
    apart = rows.astype(np.float64).reshape(batch, length, count, width // count)
    return apart.transpose(0, 2, 1, 3)


def rotate(rows_bhsd: _Array, cos: _Array, sin: _Array) -> _Array:
    """The half-split rotation by tables [S, Dh/2]."""
    cos, sin = cos.astype(np.float64), sin.astype(np.float64)
    first, second = np.split(rows_bhsd, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(
    queries: _Array, keys: _Array, values: _Array, start: int, *, scale: float
) -> NDArray[np.float64]:
    """Causal attention of rotated queries [B, H, S, Dh] over buffers [B, KV, C, Dh], in float64.

    Returns:
        [B, S, H*Dh].
    """
    batch, heads, length, depth = queries.shape
    group = heads // keys.shape[1]
    attention = np.zeros((batch, heads, length, depth))
    for head in range(heads):
        for row in range(length):
            visible = start + row + 1
            seen = keys[:, head // group, :visible].astype(np.float64)  # [B, visible, Dh]
            scores = np.einsum("bd,bvd->bv", queries[:, head, row], seen) * scale
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            mixed = values[:, head // group, :visible].astype(np.float64)
            attention[:, head, row] = np.einsum("bv,bvd->bd", weights, mixed)
    return attention.transpose(0, 2, 1, 3).reshape(batch, length, heads * depth)


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
    start = int(past_length[0])
    end = start + query.shape[1]
    if end > past_key.shape[2]:
        raise ValueError(f"{end} rows do not fit into a cache of {past_key.shape[2]} rows")
    angles = cos[start:end], sin[start:end]
    present_key, present_value = past_key.copy(), past_value.copy()
    present_key[:, :, start:end] = rotate(split_heads(key, kv_num_heads), *angles)
    present_value[:, :, start:end] = split_heads(value, kv_num_heads)
    queries = rotate(split_heads(query, num_heads), *angles)
    attention = attend(queries, present_key, present_value, start, scale=scale)
    return attention.astype(query.dtype), present_key, present_value
