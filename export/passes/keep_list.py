"""Which nodes of a graph stay in fp32 when it is lowered to fp16 or bf16, and why.

The rules look at structure, not at names, so they hold for any model of the chain:

===================  ===========================================================================
rule                 nodes
===================  ===========================================================================
range                powers, means, sums, roots, logarithms, exponentials, sines, group and instance
                     norms: squares overflow fp16 and sums lose what was added
geometry             what integers become (sizes, masks, positions): an fp16 pixel number is only
                     exact up to 2048
phase                from a sine or cosine back to float inputs of the graph, where nothing but
                     elementwise nodes lie between (a time step times a frequency)
widened              what an explicit Cast to fp32 asks for (bodies of semantic operators)
locations            from the sampling locations of a semantic operator back to the nearest weights
scores               products of two computed tensors that are no ordinary attention: class scores,
                     mask logits, and the one score matrix of a two-way fusion
types                operators whose ONNX definition at the graph's opset lacks the half type (a
                     convolution takes bf16 only from opset 22 on)
selection            all that a TopK is computed from: a rounding error there picks other rows
spread               elementwise nodes and data movers behind any of these, up to the next weights
===================  ===========================================================================

LayerNormalization and Softmax compute in fp32 inside (their kernels do, whatever the type of the
ends), and attention around a plain Softmax is left in half precision so that it can be fused.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

from visionllm_edge.plugins.registry import SEMANTIC_OPS
from visionllm_edge.plugins.semantic_op import DOMAIN

__all__ = ["HEAVY", "MOVERS", "fp32_inputs", "keep_list"]

_MOVERS = """
Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Pad Reshape
ScatterElements ScatterND Slice SpaceToDepth Split Squeeze TensorScatter Tile Transpose Unsqueeze
Where
"""
MOVERS = frozenset(_MOVERS.split())
"""Operators that only move numbers: they follow the type of what they move."""

_RANGE_NAMES = """
CumSum Exp GridSample GroupNormalization InstanceNormalization Log Pow Range Reciprocal
ReduceL1 ReduceL2 ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare Cos Sin Sqrt
"""
_RANGE = frozenset(_RANGE_NAMES.split())
HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "LayerNormalization", "MatMul"})
"""Work on weights, or compute in fp32 inside: the spread stops here."""

_PRODUCTS = frozenset({"MatMul", "Gemm"})


def keep_list(model: ir.Model, half: ir.DataType) -> dict[ir.Node, str]:
    """Nodes that stay in fp32 -> the rule that says so.

    Args:
        model: in fp32 and typed.
        half: what the rest will be in.
    """
    nodes = list(model.graph)
    opset = model.graph.opset_imports[""]
    keep: dict[ir.Node, str] = {}
    for node in nodes:
        rule = _own_rule(node) or ("types" if _lacks(node, opset, half) else None)
        if rule is not None:
            keep[node] = rule
    for node in nodes:
        if node.domain == DOMAIN and node.op_type in SEMANTIC_OPS:
            for value in fp32_inputs(node):
                for earlier in _back(value, stop=HEAVY):
                    keep.setdefault(earlier, "locations")
        elif node.op_type in ("Sin", "Cos") and node.inputs[0] is not None:
            for earlier in _phase(node.inputs[0]):
                keep.setdefault(earlier, "phase")
        elif node.op_type == "TopK" and node.inputs[0] is not None:
            for earlier in _back(node.inputs[0], stop=frozenset()):
                keep.setdefault(earlier, "selection")
    for node in nodes:
        if node not in keep and _may_spread(node) and any(_kept(v, keep) for v in _moved(node)):
            keep[node] = "spread"
    return keep


def _own_rule(node: ir.Node) -> str | None:
    if node.domain != "":
        return None
    if node.op_type == "Cast":
        source, target = node.inputs[0], node.outputs[0]
        if source is None or target.dtype != ir.DataType.FLOAT:
            return None
        return "widened" if source.dtype == ir.DataType.FLOAT else "geometry"
    if node.op_type in _RANGE or node.op_type == "TopK":
        return "range" if _is_float(node) else None
    return "scores" if _is_score(node) else None


def _lacks(node: ir.Node, opset: int, half: ir.DataType) -> bool:
    """Whether an operator's definition does not allow the half type for its first float input."""
    if node.domain != "" or not _is_float(node):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset)
    name = f"tensor({half.name.lower()})"
    for value, formal in zip(node.inputs, schema.inputs, strict=False):
        if value is not None and value.dtype == ir.DataType.FLOAT:
            return name not in formal.types
    return False


def _is_float(node: ir.Node) -> bool:
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    return any(value.dtype == ir.DataType.FLOAT for value in values)


def _is_score(node: ir.Node) -> bool:
    """A product of two computed tensors whose result does not go to exactly one Softmax."""
    if node.op_type not in _PRODUCTS or not all(_computed(v) for v in node.inputs[:2]):
        return False
    for value in node.inputs[:2]:
        if value is not None and any(n.op_type == "Softmax" for n in _back(value, stop=HEAVY)):
            return False  # attention times values
    return len(_softmaxes(node)) != 1


def _computed(value: ir.Value | None) -> bool:
    """Whether a value depends on an input of the graph."""
    if value is None or value.const_value is not None:
        return False
    if value.producer() is None:
        return value.is_graph_input()
    seen: set[ir.Node] = set()
    open_ = [value.producer()]
    while open_:
        node = open_.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for given in node.inputs:
            if given is None or given.const_value is not None:
                continue
            if given.producer() is None or node.op_type not in MOVERS:
                return True
            open_.append(given.producer())
    return False


def _softmaxes(node: ir.Node) -> set[ir.Node]:
    """The Softmax nodes that a result reaches by elementwise nodes and movers."""
    found: set[ir.Node] = set()
    seen: set[ir.Node] = set()
    open_ = [node]
    while open_:
        for output in open_.pop().outputs:
            for user in output.consumers():
                if user.op_type == "Softmax":
                    found.add(user)
                elif user not in seen and _may_spread(user):
                    seen.add(user)
                    open_.append(user)
    return found


def _may_spread(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type not in HEAVY and _is_float(node)


def _moved(node: ir.Node) -> Iterable[ir.Value | None]:
    """Inputs whose type decides: all of them, or what a mover moves."""
    if node.op_type in ("Concat", "Where", "ScatterND", "ScatterElements", "TensorScatter"):
        return node.inputs
    return node.inputs[:1] if node.op_type in MOVERS else node.inputs


def _kept(value: ir.Value | None, keep: dict[ir.Node, str]) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer in keep and value.dtype == ir.DataType.FLOAT  # type: ignore[union-attr]


def fp32_inputs(node: ir.Node) -> list[ir.Value]:
    """Inputs of a semantic node that are fp32 in every type combination."""
    ports = SEMANTIC_OPS[node.op_type].inputs
    return [
        value
        for value, port in zip(node.inputs, ports, strict=True)
        if value is not None and set(port.dtypes) == {"float32"}
    ]


def _phase(value: ir.Value) -> list[ir.Node]:
    """Nodes behind an angle that comes from the graph's inputs alone; none where weights mix in."""
    nodes = _back(value, stop=frozenset())
    for node in nodes:
        producers = [given.producer() for given in node.inputs if given is not None]
        semantic = any(producer and producer.domain == DOMAIN for producer in producers)
        if semantic or node.op_type in HEAVY or node.op_type == "TopK":
            return []
    return nodes


def _back(value: ir.Value, *, stop: frozenset[str]) -> list[ir.Node]:
    """Nodes with float results that a value is computed from, up to operators in `stop`."""
    out: list[ir.Node] = []
    seen: set[ir.Node] = set()
    open_ = [value]
    while open_:
        node = open_.pop().producer()
        if node is None or node in seen or node.op_type in stop or not _is_float(node):
            continue
        seen.add(node)
        if node.domain == DOMAIN:
            continue
        out.append(node)
        open_ += [given for given in node.inputs if given is not None]
    return out
