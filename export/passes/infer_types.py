"""Fill in element types and shapes of values that a rewrite left without."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from visionllm_edge.runtime.errors import ExportError

__all__ = ["infer_types"]


def infer_types(model: ir.Model) -> int:
    """Infer; returns how many values were without a type before.

    Raises:
        ExportError: a value of the graph still has no type.
    """
    before = sum(value.dtype is None for node in model.graph for value in node.outputs)
    ShapeInferencePass(check_type=True)(model)
    for node in model.graph:
        for value in node.outputs:
            if value.dtype is None and value.name:
                raise ExportError(
                    f"graph '{model.graph.name}': the type of '{value.name}' ({node.op_type}) "
                    "cannot be inferred. Give the node's output a type where it is made."
                )
    return before
