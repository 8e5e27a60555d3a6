"""Cached attention over an int8 cache in plain numpy, in float64.

See `cached_attention/reference.py`, which has the parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.plugins.cached_attention.reference import attend, rotate, split_heads

__all__ = ["quantized_cached_attention"]

_Float = NDArray[np.float32]
_Int8 = NDArray[np.int8]


def quantized_cached_attention(
    query: _Float,
    key: _Float,
    value: _Float,
    past_key: _Int8,
    past_value: _Int8,
    past_length: NDArray[np.int64],
    cos: _Float,
    sin: _Float,
    key_scale: _Float,
    value_scale: _Float,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
) -> tuple[_Float, _Int8, _Int8]:
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
        key_scale: [KV, Dh], of rotated keys.
        value_scale: [KV, Dh].
        num_heads: H.
        kv_num_heads: KV.
        scale: factor on the scores.

    Returns:
        attention [B, S, H*Dh] and the new buffers [B, KV, C, Dh].

    Raises:
        ValueError: the new rows do not fit into the buffer.
    """
    start = int(past_length[0])
    end = start + query.shape[1]
    if end > past_key.shape[2]:
        raise ValueError(f"{end} rows do not fit into a cache of {past_key.shape[2]} rows")
    key_steps, value_steps = key_scale[:, None].astype(float), value_scale[:, None].astype(float)

    def whole(rows: NDArray[Any], steps: NDArray[Any]) -> _Int8:
        stored: _Int8 = np.clip(np.rint(rows / steps), -127, 127).astype(np.int8)
        return stored

    angles = cos[start:end], sin[start:end]
    present_key, present_value = past_key.copy(), past_value.copy()
    rotated_key = rotate(split_heads(key, kv_num_heads), *angles)
    present_key[:, :, start:end] = whole(rotated_key, key_steps)
    present_value[:, :, start:end] = whole(split_heads(value, kv_num_heads), value_steps)
    attention = attend(
        rotate(split_heads(query, num_heads), *angles),
        present_key * key_steps,
        present_value * value_steps,
        start,
        scale=scale,
    )
    return attention.astype(query.dtype), present_key, present_value
