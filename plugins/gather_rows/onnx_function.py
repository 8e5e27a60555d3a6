"""Rows in another order as an ONNX function: Gather, and zeros where the index is below 0."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from visionllm_edge.plugins.function_body import FunctionBody, require_opset
from visionllm_edge.plugins.gather_rows.spec import GATHER_ROWS

__all__ = ["MAX_OPSET", "MIN_OPSET", "build_function"]

MIN_OPSET = 18
MAX_OPSET = 24
_PREFIX = "rows_"


def build_function(*, opset: int) -> onnx.FunctionProto:
    """Build the function body for a model at `opset` (18 to 24).

    Raises:
        ValueError: opset outside 18..24.
    """
    require_opset(GATHER_ROWS, opset, MIN_OPSET, MAX_OPSET)
    body = FunctionBody(_PREFIX)
    x, index = body.inputs(GATHER_ROWS)
    first = body.add("Constant", [], "first", value_int=0)
    zero = body.add("Cast", [first], "zero", to=TensorProto.INT32)
    there = body.add("GreaterOrEqual", [index, zero], "there")
    # A row that is not there is row 0 times 0; a product would keep its NaN, so it is chosen.
    safe = body.add("Max", [index, zero], "safe")
    rows = body.add("Gather", [x, safe], "gathered", axis=0)
    column = body.add("Unsqueeze", [there, body.ints("axis", [1])], "column")
    nothing = body.add("Constant", [], "nothing", value_float=0.0)
    y = body.add("Where", [column, rows, nothing], GATHER_ROWS.outputs[0].name)
    return body.function(GATHER_ROWS, [y], opset=opset)
