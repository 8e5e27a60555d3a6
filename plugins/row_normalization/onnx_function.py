"""The normalisation as an ONNX function: a row is cut into `parts`, and means are taken twice.

A mean of means of equal parts is the mean. The numbers are moved by the mean before they are
squared, so a mean far from zero costs no digits of the variance.
"""

from __future__ import annotations

import onnx

from visionllm_edge.plugins.function_body import FunctionBody, require_opset
from visionllm_edge.plugins.row_normalization.spec import ROW_NORMALIZATION

__all__ = ["MAX_OPSET", "MIN_OPSET", "build_function"]

MIN_OPSET = 18
MAX_OPSET = 24
_PREFIX = "rownorm_"


def build_function(*, opset: int) -> onnx.FunctionProto:
    """Build the function body for a model at `opset` (18 to 24).

    Raises:
        ValueError: opset outside 18..24.
    """
    require_opset(ROW_NORMALIZATION, opset, MIN_OPSET, MAX_OPSET)
    body = FunctionBody(_PREFIX)
    names = body.inputs(ROW_NORMALIZATION)
    x, scale, bias = names
    own = body.add("Shape", [x], "own")
    number = body.add("Reshape", [body.attribute("parts", "int"), body.ints("one", [1])], "number")
    cut = [body.ints("same", [0, 0]), number, body.ints("rest", [-1])]
    shape = body.add("Concat", cut, "shape", axis=0)
    parts = body.add("Reshape", [x, shape], "cut")  # [N,C,parts,L/parts]
    away = body.add("Sub", [parts, _mean(body, parts, "mean")], "away")
    variance = _mean(body, body.add("Mul", [away, away], "square"), "variance")
    raised = body.add("Add", [variance, body.attribute("epsilon", "float")], "raised")
    spread = body.add("Sqrt", [raised], "spread")
    column = body.ints("column", [-1, 1, 1])
    gain = body.add("Div", [body.add("Reshape", [scale, column], "scales"), spread], "gain")
    scaled = body.add("Mul", [away, gain], "scaled")
    moved = body.add("Add", [scaled, body.add("Reshape", [bias, column], "biases")], "moved")
    y = body.add("Reshape", [moved, own], ROW_NORMALIZATION.outputs[0].name)
    return body.function(ROW_NORMALIZATION, [y], opset=opset)


def _mean(body: FunctionBody, value: str, name: str) -> str:
    """Mean over the last axis, then over the parts: [N,C,parts,l] to [N,C,1,1]."""
    last = body.ints(f"{name}_last", [3])
    short = body.add("ReduceMean", [value, last], f"{name}_of_parts")
    return body.add("ReduceMean", [short, body.ints(f"{name}_axis", [2])], name)
