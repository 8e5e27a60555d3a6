"""Replace a Split of an initializer by its parts.

Cases:
    1. Sizes given as a constant, or equal parts by `num_outputs`: replaced.
    2. Sizes computed at run time, data that is no constant, or a part that is an output of the
       graph (an output keeps its name): left alone.

onnxscript's folding skips operators with several outputs, and packed attention weights
(`in_proj_weight`) arrive as exactly that.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["split_constants"]


def split_constants(model: ir.Model) -> int:
    """Replace every Split of a constant; returns how many were replaced."""
    graph, count = model.graph, 0
    for node in list(graph):
        if node.domain != "" or node.op_type != "Split":
            continue
        data = node.inputs[0]
        assert data is not None, "Split has a data input"
        constant = ir.convenience.get_const_tensor(data)
        if constant is None or any(output.is_graph_output() for output in node.outputs):
            continue
        whole, axis = constant.numpy(), node.attributes.get_int("axis", 0)
        bounds = _bounds(node, whole.shape[axis])
        if bounds is None:
            continue
        parts = np.split(whole, bounds, axis=axis)
        for index, (part, output) in enumerate(zip(parts, node.outputs, strict=True)):
            name = f"{data.name}.part{index}.axis{axis}"
            while name in graph.initializers:
                name += "_"
            tensor = ir.Tensor(np.ascontiguousarray(part), name=name)
            value = ir.Value(
                name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            graph.register_initializer(value)
            output.replace_all_uses_with(value)
        graph.remove(node, safe=True)
        count += 1
    return count


def _bounds(node: ir.Node, length: int) -> list[int] | None:
    """Where the parts begin, without the leading 0; None if that is unknown."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        sizes = ir.convenience.get_const_tensor(node.inputs[1])
        if sizes is None:
            return None
        return [int(end) for end in np.cumsum(sizes.numpy())[:-1]]
    step = -(-length // len(node.outputs))
    return [step * index for index in range(1, len(node.outputs))]
