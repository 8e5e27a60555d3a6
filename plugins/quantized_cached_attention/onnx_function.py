"""Cached attention over an int8 cache as an ONNX function: CachedAttention's body, with scales.

New rows are divided by their channels' scales, rounded to even and clipped before they are
written; the whole buffer is widened and multiplied when it is read. So this body is for running
anywhere, and not for speed. See `cached_attention/onnx_function.py` for the rest.
"""

from __future__ import annotations

import onnx
from onnx import helper

from visionllm_edge.plugins.cached_attention.onnx_function import (
    MAX_OPSET,
    MIN_OPSET,
    standard_body,
)
from visionllm_edge.plugins.function_body import FunctionBody
from visionllm_edge.plugins.quantized_cached_attention.spec import QUANTIZED_CACHED_ATTENTION
from visionllm_edge.plugins.semantic_op import DOMAIN

__all__ = ["build_function"]

_PREFIX = "qcattn_"


def build_function(*, opset: int) -> onnx.FunctionProto:
    """Build the function body for a model at `opset` (18 to 24).

    Raises:
        ValueError: opset outside 18..24.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ValueError(
            f"QuantizedCachedAttention: opset expected {MIN_OPSET}..{MAX_OPSET}, got {opset}. "
            "Export the decoder at opset 21."
        )
    body = FunctionBody(_PREFIX)
    names = [_PREFIX + port.name for port in QUANTIZED_CACHED_ATTENTION.inputs]
    outputs = standard_body(body, "scatter_nd", names[:8], (names[8], names[9]))
    return helper.make_function(
        DOMAIN,
        QUANTIZED_CACHED_ATTENTION.name,
        names,
        outputs,
        body.nodes,
        [helper.make_opsetid("", opset)],
        attributes=[name for name, _ in QUANTIZED_CACHED_ATTENTION.attributes],
    )
