"""The quantised layer with bias and activation as an ONNX function.

The linear half is that of QuantizedLinear, in standard operators or as one com.microsoft
MatMulNBits. The activation is chosen by nested If nodes on the attribute: the attribute is a
constant of the node, so a runtime that folds constants is left with the branch that is meant.
"""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto, helper

from visionllm_edge.plugins.function_body import FunctionBody, require_opset
from visionllm_edge.plugins.quantized_dense.spec import ACTIVATIONS, QUANTIZED_DENSE
from visionllm_edge.plugins.quantized_linear.onnx_function import (
    CONTRIB_DOMAIN,
    MAX_OPSET,
    MIN_OPSET,
    add_linear,
)

__all__ = ["build_function"]

_PREFIX = "qdense_"


def build_function(*, opset: int, contrib: bool = False) -> onnx.FunctionProto:
    """Build the function body for a model at `opset` (18 to 21).

    Args:
        opset: default-domain opset of the model.
        contrib: use ONNX Runtime's MatMulNBits; such a file runs nowhere else.

    Raises:
        ValueError: opset outside 18..21.
    """
    require_opset(QUANTIZED_DENSE, opset, MIN_OPSET, MAX_OPSET)
    body = FunctionBody(_PREFIX)
    names = body.inputs(QUANTIZED_DENSE)
    x, weight, scales, bias = names
    linear = add_linear(body, x, weight, scales, "linear", contrib=contrib)
    sums = body.add("Add", [linear, bias], "sums")
    wanted = body.attribute("activation", "int")
    output = _choose(body, sums, wanted)
    return body.function(
        QUANTIZED_DENSE, [output], opset=opset, contrib=CONTRIB_DOMAIN if contrib else None
    )


def _choose(body: FunctionBody, sums: str, wanted: str) -> str:
    """If wanted is the first, its branch, else if it is the second, ..."""
    branches = {name: _branch(name, sums) for name in ACTIVATIONS}
    (_, other), *rest = ((name, branches[name]) for name in ACTIVATIONS)
    for name, graph in rest[:-1]:
        other = _decision(name, wanted, graph, other)
    name, graph = rest[-1]
    code = body.add("Constant", [], f"is_{name}", value_int=ACTIVATIONS[name])
    chosen = body.add("Equal", [wanted, code], f"chosen_{name}")
    return body.add(
        "If", [chosen], QUANTIZED_DENSE.outputs[0].name, then_branch=graph, else_branch=other
    )


def _decision(
    name: str, wanted: str, then: onnx.GraphProto, other: onnx.GraphProto
) -> onnx.GraphProto:
    """A branch that is itself a choice."""
    body = FunctionBody(f"{_PREFIX}or_{name}_")
    code = body.add("Constant", [], "code", value_int=ACTIVATIONS[name])
    chosen = body.add("Equal", [wanted, code], "chosen")
    y = body.add("If", [chosen], "y", then_branch=then, else_branch=other)
    return _graph(body, y)


def _branch(name: str, z: str) -> onnx.GraphProto:
    body = FunctionBody(f"{_PREFIX}{name}_")

    def number(label: str, value: float) -> str:
        return body.add("Constant", [], label, value_float=value)

    if name == "gelu":
        scaled = body.add("Mul", [z, number("root", math.sqrt(0.5))], "scaled")
        risen = body.add("Add", [body.add("Erf", [scaled], "erf"), number("one", 1.0)], "risen")
        half = body.add("Mul", [z, number("half", 0.5)], "halved")
        y = body.add("Mul", [half, risen], "y")
    elif name == "quick_gelu":
        scaled = body.add("Mul", [z, number("slope", 1.702)], "scaled")
        y = body.add("Mul", [z, body.add("Sigmoid", [scaled], "sigmoid")], "y")
    else:
        y = body.add({"none": "Identity", "relu": "Relu"}[name], [z], "y")
    return _graph(body, y)


def _graph(body: FunctionBody, output: str) -> onnx.GraphProto:
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    return helper.make_graph(
        body.nodes, f"{body.prefix}branch", [], [helper.make_value_info(output, kind)]
    )
