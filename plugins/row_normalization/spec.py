"""Normalisation of long rows, summed in parts: ports, letters, attributes.

Letters: N pictures, C rows of each (channels, or groups of channels), L numbers of a row. With mean
and variance of a row's own numbers, y = (x - mean) / sqrt(variance + epsilon) * scale[c] + bias[c].

The meaning is that of ONNX's InstanceNormalization. The form differs: a group norm over a map has
rows of hundreds of thousands of numbers, and where a picture is padded most of them are one and the
same. Adding them one after the other rounds every addition the same way, so the error grows with
the length; a sum of short sums does not. `parts` (at least 1, divides L) says how many short sums
the function makes; the kernel has parts of its own.
"""

from __future__ import annotations

from visionllm_edge.plugins.semantic_op import OpPort, SemanticOp

__all__ = ["ROW_NORMALIZATION"]

_FLOAT = ("float32",)

ROW_NORMALIZATION = SemanticOp(
    name="RowNormalization",
    summary="Every row to mean 0 and variance 1, then scaled and shifted; summed in parts.",
    inputs=(
        OpPort("x", ("N", "C", "L"), _FLOAT),
        OpPort("scale", ("C",), _FLOAT),
        OpPort("bias", ("C",), _FLOAT),
    ),
    outputs=(OpPort("y", ("N", "C", "L"), _FLOAT),),
    attributes=(("epsilon", "float"), ("parts", "int")),
    module="visionllm_edge.plugins.row_normalization",
)
