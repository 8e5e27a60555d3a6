"""Turn a bf16 graph into one that ONNX Runtime's CPU kernels run, with the same rounding.

They have no bf16 arithmetic. Here every bf16 value becomes fp32, and what an operator makes is
rounded to bf16 and back by two Casts: the numbers of a device that adds up in fp32 and rounds each
result once. For checks on a machine without the device; never part of a kit.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from visionllm_edge.export.passes.keep_list import MOVERS

__all__ = ["emulate_bfloat16"]

_BF16, _FLOAT = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def emulate_bfloat16(model: ir.Model) -> int:
    """Rewrite in place; returns how many values are rounded."""
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype == _BF16:
            _widen_weight(value)
    count = 0
    for value in graph.inputs:
        if value.dtype == _BF16:
            value.dtype = _FLOAT
            count += _round(graph, value, None)
    for node in list(graph):
        for output in node.outputs:
            if output.dtype != _BF16:
                continue
            output.dtype = _FLOAT
            if node.op_type == "Cast" and node.domain == "":
                node.attributes["to"] = ir.AttrInt64("to", int(_FLOAT))
            if node.op_type not in MOVERS or node.domain != "":
                count += _round(graph, output, node)
    return count


def _round(graph: ir.Graph, value: ir.Value, producer: ir.Node | None) -> int:
    """Let everything behind a value read it rounded; a graph's output keeps its name."""
    name = value.name
    if not value.uses() and not value.is_graph_output():
        return 0
    narrow = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(_BF16))], num_outputs=1)
    wide = ir.Node("", "Cast", narrow.outputs, [ir.AttrInt64("to", int(_FLOAT))], num_outputs=1)
    for node, dtype, suffix in ((narrow, _BF16, "narrow"), (wide, _FLOAT, "wide")):
        node.name = node.outputs[0].name = f"{name}.{suffix}"
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
    rounded = wide.outputs[0]
    for user, index in list(value.uses()):
        if user is not narrow:
            user.replace_input_with(index, rounded)
    for index, output in enumerate(graph.outputs):
        if output is value:
            value.name, rounded.name = f"{name}.exact", name
            graph.outputs[index] = rounded
    if producer is not None:
        graph.insert_after(producer, [narrow, wide])
    elif len(graph):
        graph.insert_before(graph[0], [narrow, wide])
    return 1


def _widen_weight(value: ir.Value) -> None:
    tensor = value.const_value
    assert tensor is not None, "an initializer has a tensor"

    def widen() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(np.float32), name=value.name)

    shape = ir.Shape(tensor.shape.numpy())
    value.const_value = ir.LazyTensor(widen, dtype=_FLOAT, shape=shape, name=value.name)
    value.dtype = _FLOAT
