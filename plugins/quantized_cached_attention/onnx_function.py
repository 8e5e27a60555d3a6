"""Cached attention over an int8 cache as an ONNX function: CachedAttention's body, with scales.

New rows are divided by their channels' scales, rounded to even and clipped before they are
written; the whole buffer is widened and multiplied when it is read. So this body is for running
anywhere, and not for speed. See `cached_attention/onnx_function.py` for the rest.
"""

from __future__ import annotations

import onnx

from visionllm_edge.plugins.cached_attention.onnx_function import (
    MAX_OPSET,
    MIN_OPSET,
    standard_body,
)
from visionllm_edge.plugins.function_body import FunctionBody, require_opset
from visionllm_edge.plugins.quantized_cached_attention.spec import QUANTIZED_CACHED_ATTENTION

__all__ = ["build_function"]

_PREFIX = "qcattn_"


def build_function(*, opset: int) -> onnx.FunctionProto:
    """Build the function body for a model at `opset` (18 to 24).

    Raises:
        ValueError: opset outside 18..24.
    """
    require_opset(
        QUANTIZED_CACHED_ATTENTION, opset, MIN_OPSET, MAX_OPSET, "Export the decoder at opset 21."
    )
    body = FunctionBody(_PREFIX)
    names = body.inputs(QUANTIZED_CACHED_ATTENTION)
    outputs = standard_body(body, "scatter_nd", names[:8], (names[8], names[9]))
    return body.function(QUANTIZED_CACHED_ATTENTION, outputs, opset=opset)
