"""The gate as an ONNX function: Split, Sigmoid and two products."""

from __future__ import annotations

import onnx

from visionllm_edge.plugins.function_body import FunctionBody, require_opset
from visionllm_edge.plugins.gated_silu.spec import GATED_SILU

__all__ = ["MAX_OPSET", "MIN_OPSET", "build_function"]

MIN_OPSET = 18
MAX_OPSET = 24
_PREFIX = "gsilu_"


def build_function(*, opset: int) -> onnx.FunctionProto:
    """Build the function body for a model at `opset` (18 to 24).

    Raises:
        ValueError: opset outside 18..24.
    """
    require_opset(GATED_SILU, opset, MIN_OPSET, MAX_OPSET)
    body = FunctionBody(_PREFIX)
    gate_up = _PREFIX + GATED_SILU.inputs[0].name
    gate, up = body.add_pair("Split", [gate_up], ("gate", "up"), axis=-1, num_outputs=2)
    sigmoid = body.add("Sigmoid", [gate], "sigmoid")
    silu = body.add("Mul", [gate, sigmoid], "silu")
    y = body.add("Mul", [silu, up], GATED_SILU.outputs[0].name)
    return body.function(GATED_SILU, [y], opset=opset)
