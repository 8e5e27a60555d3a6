"""A linear layer with block-quantised weights: ports, letters, attributes.

Letters: B batch, S rows, K inputs, N outputs, G inputs that share a scale, bits 4 or 8.

A stored number is q + 2^(bits-1), so that it is never negative; q is -8..7 or -128..127 and is
multiplied by its block's scale. Four bits: two numbers a byte, the even input in the low half. The
layout is that of com.microsoft MatMulNBits without zero points, which lets ONNX Runtime run the
very same weights where our kernel is not there.

`accuracy_level` says what a form may do with the activations; the numbers are ONNX Runtime's:
1 keeps them float32, 4 may round them to int8, one scale for each row and block of G inputs.
"""

from __future__ import annotations

from visionllm_edge.plugins.semantic_op import OpPort, SemanticOp

__all__ = ["QUANTIZED_LINEAR"]

QUANTIZED_LINEAR = SemanticOp(
    name="QuantizedLinear",
    summary="y = x W^T, W stored in 4 or 8 bits with one scale per block of inputs.",
    inputs=(
        OpPort("x", ("B", "S", "K"), ("float32",)),
        OpPort("weight", ("N", "K/G", "G*bits/8"), ("uint8",)),
        OpPort("scales", ("N", "K/G"), ("float16",)),
    ),
    outputs=(OpPort("y", ("B", "S", "N"), ("float32",)),),
    attributes=(
        ("K", "int"),
        ("N", "int"),
        ("bits", "int"),
        ("block_size", "int"),
        ("accuracy_level", "int"),
    ),
    module="visionllm_edge.plugins.quantized_linear",
)
