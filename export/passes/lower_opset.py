"""Write a graph down to an older opset where none of its operators changed its meaning.

The decoder is written at opset 21 for its 4-bit weights; releases of TensorRT that stop at 20 take
the same operators under the older number as long as no newer feature is used.

Refusals:
    1. an operator whose newest definition does more than allow new element types.
    2. an attribute that the older definition does not know.
    3. an element type that the older definition does not allow (a 4-bit integer, for one).
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from visionllm_edge.runtime.errors import ExportError

__all__ = ["lower_opset"]

# Between 19 and 21 these got new element types, and nothing else.
_ONLY_NEW_TYPES_NAMES = """
Cast CastLike Constant ConstantOfShape DequantizeLinear Flatten Identity If Loop Pad
QuantizeLinear ReduceMax ReduceMin Reshape Scan Shape Size Squeeze Transpose Unsqueeze
"""
_ONLY_NEW_TYPES = frozenset(_ONLY_NEW_TYPES_NAMES.split())
_OLDEST = 19
_NEW_TYPES = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.FLOAT4E2M1)


def lower_opset(model: ir.Model, version: int) -> int:
    """Set the default domain's opset to `version` if it is newer; returns 1 if it was.

    Raises:
        ExportError: see the refusals.
    """
    current = model.graph.opset_imports.get("", 1)
    if current <= version:
        return 0
    for node in model.graph.all_nodes():
        if node.domain == "":
            _check(model, node, current, version)
    model.graph.opset_imports[""] = version
    for function in model.functions.values():
        if function.opset_imports.get("", 1) > version:
            function.opset_imports[""] = version
    return 1


def _check(model: ir.Model, node: ir.Node, current: int, version: int) -> None:
    new = onnx.defs.get_schema(node.op_type, current)
    where = f"graph '{model.graph.name}': node '{node.name}' ({node.op_type})"
    if new.since_version <= version:
        return
    if node.op_type not in _ONLY_NEW_TYPES or version < _OLDEST:
        raise ExportError(
            f"{where} is of opset {new.since_version}, the target takes {version} and means "
            "something else by it. Write the operator in older ones."
        )
    old = onnx.defs.get_schema(node.op_type, version)
    unknown = sorted(set(node.attributes) - set(old.attributes))
    types = [v.dtype for v in (*node.inputs, *node.outputs) if v is not None]
    narrow = [str(t) for t in types if t in _NEW_TYPES]
    if unknown or narrow:
        raise ExportError(
            f"{where} needs opset {new.since_version} for {', '.join(unknown + narrow)}, the "
            f"target takes {version}."
        )
