"""Causal attention with rotary embedding over a fixed cache buffer: ports, letters, types.

Letters: B batch, S new rows, H query heads, KV key/value heads (a divisor of H), Dh head dim,
C cache capacity in rows, R rows of the rotary tables (R >= past_length + S).

The cache has the element type of the rest, or float16 beside float32. Either way a row is rounded
to the cache's type when it is written, and attention sees what the cache holds.

Contract: past_length + S <= C (the caller checks it; a graph cannot raise), and the whole buffer
holds finite numbers, also in rows that were never written: a lowering may multiply them by zero.
"""

from __future__ import annotations

from visionllm_edge.plugins.semantic_op import OpPort, SemanticOp

__all__ = ["CACHED_ATTENTION"]

_FLOAT = ("float32", "float16", "bfloat16", "float32")
_CACHE = ("float32", "float16", "bfloat16", "float16")
_INT64 = ("int64",) * 4

CACHED_ATTENTION = SemanticOp(
    name="CachedAttention",
    summary="Rotate q and k, append k and v to the cache, attend causally to the valid rows.",
    inputs=(
        OpPort("query", ("B", "S", "H*Dh"), _FLOAT),
        OpPort("key", ("B", "S", "KV*Dh"), _FLOAT),
        OpPort("value", ("B", "S", "KV*Dh"), _FLOAT),
        OpPort("past_key", ("B", "KV", "C", "Dh"), _CACHE),
        OpPort("past_value", ("B", "KV", "C", "Dh"), _CACHE),
        OpPort("past_length", (1,), _INT64),
        OpPort("cos", ("R", "Dh/2"), _FLOAT),
        OpPort("sin", ("R", "Dh/2"), _FLOAT),
    ),
    outputs=(
        OpPort("attention", ("B", "S", "H*Dh"), _FLOAT),
        OpPort("present_key", ("B", "KV", "C", "Dh"), _CACHE),
        OpPort("present_value", ("B", "KV", "C", "Dh"), _CACHE),
    ),
    attributes=(("num_heads", "int"), ("kv_num_heads", "int"), ("scale", "float")),
    module="visionllm_edge.plugins.cached_attention",
)
