"""Which layers of a graph are not written in eight bits, and why. By structure, not by names.

===================  ===========================================================================
rule                 layers
===================  ===========================================================================
(of `keep_list`)     what half precision already leaves in fp32: locations, selection, scores, ...
picture              a convolution that reads fewer than 16 channels: the pixels themselves
narrow               fewer than 16 output channels: boxes and single scores, which are answers, and
                     too small for eight-bit matrix units
locations            the nearest layers that the sampling locations of a semantic operator come from
scores               the nearest layers that a score (of two computed tensors) comes from
last                 the layer whose result is an output of the graph, but for what follows it
===================  ===========================================================================

What a measurement finds sensitive is added by `visionllm_edge.export.calibration`.
"""

from __future__ import annotations

import onnx_ir as ir

from visionllm_edge.export.passes.keep_list import HEAVY, fp32_inputs, keep_list
from visionllm_edge.export.passes.quantize_dequantize import channel_axis, weight_of
from visionllm_edge.plugins.registry import SEMANTIC_OPS
from visionllm_edge.plugins.semantic_op import DOMAIN

__all__ = ["quantizable_layers"]

_MIN_CHANNELS = 16
"""Matrix units of eight bits take 16 numbers in a row (of 16 bytes)."""


def quantizable_layers(model: ir.Model) -> tuple[list[ir.Node], dict[ir.Node, str]]:
    """Layers with constant weights: those to write in eight bits, and the kept ones with the rule.

    Args:
        model: in fp32 and typed; semantic nodes may still be there.
    """
    half = keep_list(model, ir.DataType.FLOAT16)
    rules: dict[ir.Node, str] = {}
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type in SEMANTIC_OPS:
            for value in fp32_inputs(node):
                _mark(rules, value, "locations")
        elif half.get(node) == "scores":
            for given in node.inputs[:2]:
                _mark(rules, given, "scores")
    for output in model.graph.outputs:
        last = _last(output)
        if last is not None:
            rules.setdefault(last, "last")
    chosen: list[ir.Node] = []
    kept: dict[ir.Node, str] = {}
    for node in model.graph:
        weight = weight_of(node)
        if weight is None or weight.const_value is None:
            continue
        rule = half.get(node) or _narrow(node, weight.const_value) or rules.get(node)
        if rule is None:
            chosen.append(node)
        else:
            kept[node] = rule
    return chosen, kept


def _narrow(node: ir.Node, weight: ir.TensorProtocol) -> str | None:
    shape = weight.shape.numpy()
    if node.op_type == "Conv" and shape[1] < _MIN_CHANNELS:
        return "picture"
    return "narrow" if shape[channel_axis(node)] < _MIN_CHANNELS else None


def _mark(rules: dict[ir.Node, str], value: ir.Value | None, rule: str) -> None:
    """Mark the nearest layers that a value is computed from."""
    seen: set[ir.Node] = set()
    open_ = [value]
    while open_:
        current = open_.pop()
        node = None if current is None else current.producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in HEAVY or node.domain == DOMAIN:
            rules.setdefault(node, rule)
        else:
            open_ += list(node.inputs)


def _last(output: ir.Value) -> ir.Node | None:
    """The layer before an output, where one path leads to it: a residual sum ends the search."""
    value: ir.Value | None = output
    while value is not None:
        node = value.producer()
        if node is None or node.domain == DOMAIN:
            return None
        if weight_of(node) is not None:
            return node
        computed = [v for v in node.inputs if v is not None and v.const_value is None]
        floats = [v for v in computed if v.dtype == ir.DataType.FLOAT]
        value = floats[0] if len(floats) == 1 and node.op_type != "LayerNormalization" else None
    return None
