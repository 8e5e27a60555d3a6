"""Cached attention over a cache of 8-bit whole numbers: ports, letters, types.

Letters as in CachedAttention. A cache row is q * scale with q from -127 to 127 and one scale for
each channel of each key/value head, fixed when the model is compiled (keys after their rotation).
A row is rounded to nearest even when it is written, and attention sees what the cache holds.

Contract: as CachedAttention; the scales are above 0. Zeros in rows never written are fine.
"""

from __future__ import annotations

from visionllm_edge.plugins.semantic_op import OpPort, SemanticOp

__all__ = ["QUANTIZED_CACHED_ATTENTION"]

_F32 = ("float32",)
_INT8 = ("int8",)

QUANTIZED_CACHED_ATTENTION = SemanticOp(
    name="QuantizedCachedAttention",
    summary="CachedAttention whose cache holds int8, with one fixed scale per channel.",
    inputs=(
        OpPort("query", ("B", "S", "H*Dh"), _F32),
        OpPort("key", ("B", "S", "KV*Dh"), _F32),
        OpPort("value", ("B", "S", "KV*Dh"), _F32),
        OpPort("past_key", ("B", "KV", "C", "Dh"), _INT8),
        OpPort("past_value", ("B", "KV", "C", "Dh"), _INT8),
        OpPort("past_length", (1,), ("int64",)),
        OpPort("cos", ("R", "Dh/2"), _F32),
        OpPort("sin", ("R", "Dh/2"), _F32),
        OpPort("key_scale", ("KV", "Dh"), _F32),
        OpPort("value_scale", ("KV", "Dh"), _F32),
    ),
    outputs=(
        OpPort("attention", ("B", "S", "H*Dh"), _F32),
        OpPort("present_key", ("B", "KV", "C", "Dh"), _INT8),
        OpPort("present_value", ("B", "KV", "C", "Dh"), _INT8),
    ),
    attributes=(("num_heads", "int"), ("kv_num_heads", "int"), ("scale", "float")),
    module="visionllm_edge.plugins.quantized_cached_attention",
)
