"""Write a graph up to a newer opset where none of its operators changed its meaning.

The decoder is written at opset 21; a target whose cache is updated by TensorScatter needs 24.

Refusal:
    an operator whose newer definition does more than allow new element types or add an attribute
    whose default is the old meaning.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from visionllm_edge.runtime.errors import ExportError

__all__ = ["raise_opset"]

# Between 21 and 24 these got new element types, and some an optional attribute (a rounding mode,
# an output type); nothing else.
_SAME_NAMES = """
Cast CastLike Constant ConstantOfShape DequantizeLinear Flatten Identity If Loop QuantizeLinear
Reshape Scan Shape Size Squeeze Transpose Unsqueeze
"""
_SAME = frozenset(_SAME_NAMES.split())
_OLDEST, _NEWEST = 21, 24


def raise_opset(model: ir.Model, version: int) -> int:
    """Set the default domain's opset to `version` if it is older; returns 1 if it was.

    Raises:
        ExportError: see the refusal.
    """
    current = model.graph.opset_imports.get("", 1)
    if current >= version:
        return 0
    bodies = [(model.graph.name, model.graph)]
    bodies += [(function.name, function.graph) for function in model.functions.values()]
    for name, graph in bodies:
        for node in graph.all_nodes():
            if node.domain == "":
                _check(str(name), node, current, version)
    model.graph.opset_imports[""] = version
    for function in model.functions.values():
        function.opset_imports[""] = version
    return 1


def _check(graph: str, node: ir.Node, current: int, version: int) -> None:
    new = onnx.defs.get_schema(node.op_type, version).since_version
    if new <= current:
        return
    if node.op_type not in _SAME or current < _OLDEST or version > _NEWEST:
        raise ExportError(
            f"graph '{graph}': node '{node.name}' ({node.op_type}) is of opset {current}, and "
            f"opset {new} may mean something else by it. Keep the graph at opset {current}."
        )
