"""Full attention of several heads, without a causal mask: ports, letters, types.

Letters: B batch, S rows of queries, K rows of keys and values, H heads, Dh head dim; the heads of a
row lie side by side. N different biases, M entries of the batch after which their order repeats, J
is H or 1, and (T, U) is (S, K) or (1, 1).

Batch entry b adds bias[bias_index[b mod M]] to its scores: windows that share a mask share one
bias. A bias of [1, 1, 1, 1] that holds 0 means none, and costs nothing.

`accuracy_level` says what a form may do, in ONNX Runtime's numbers: 1 keeps float32; 3 may round
what it multiplies to bfloat16, and adds in float32. Rounded are the queries times scale and
log2(e), the keys, the weights 2^(score - largest score of the row), and the values; a row is
divided by the sum of its weights as they were before.

Contract: every number of bias_index is at least 0 and less than N, and B is a multiple of M.
"""

from __future__ import annotations

from visionllm_edge.plugins.semantic_op import OpPort, SemanticOp

__all__ = ["UNMASKED_ATTENTION"]

_FLOAT = ("float32",)

UNMASKED_ATTENTION = SemanticOp(
    name="UnmaskedAttention",
    summary="y = softmax(scale * query key^T + bias) value for each head.",
    inputs=(
        OpPort("query", ("B", "S", "H*Dh"), _FLOAT),
        OpPort("key", ("B", "K", "H*Dh"), _FLOAT),
        OpPort("value", ("B", "K", "H*Dh"), _FLOAT),
        OpPort("bias", ("N", "J", "T", "U"), _FLOAT),
        OpPort("bias_index", ("M",), ("int64",)),
    ),
    outputs=(OpPort("y", ("B", "S", "H*Dh"), _FLOAT),),
    attributes=(("num_heads", "int"), ("scale", "float"), ("accuracy_level", "int")),
    module="visionllm_edge.plugins.unmasked_attention",
)
