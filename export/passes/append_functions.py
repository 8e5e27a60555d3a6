"""Attach the ONNX function of every semantic operator in the graph.

The exporter inlines functions, so they come in after it. With its function a graph runs anywhere;
a lowering that replaces all nodes of an operator drops the function again.
"""

from __future__ import annotations

import onnx_ir as ir

from visionllm_edge.plugins.registry import SEMANTIC_OPS
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.errors import ExportError

__all__ = ["append_functions"]


def append_functions(model: ir.Model) -> int:
    """Append one function per semantic operator used; returns how many.

    Raises:
        ExportError: an operator of our domain that the registry does not know, two nodes that need
            different bodies, or an opset at which the body cannot be written.
    """
    wanted: dict[str, dict[str, int]] = {}
    for node in model.graph.all_nodes():
        if node.domain != DOMAIN:
            continue
        if node.op_type not in SEMANTIC_OPS:
            raise ExportError(
                f"graph '{model.graph.name}': node '{node.name}' is {DOMAIN}::{node.op_type}, "
                f"expected one of {', '.join(sorted(SEMANTIC_OPS))}. Add it to plugins/registry.py."
            )
        options = _options(node)
        if wanted.setdefault(node.op_type, options) != options:
            raise ExportError(
                f"graph '{model.graph.name}': node '{node.name}' ({node.op_type}) needs a body for "
                f"{options}, another node one for {wanted[node.op_type]}; a model holds one."
            )
    opset = model.graph.opset_imports[""]
    added = 0
    for op_type, options in wanted.items():
        try:
            proto = SEMANTIC_OPS[op_type].onnx_function(opset=opset, **options)
        except ValueError as e:
            raise ExportError(f"graph '{model.graph.name}': {e}") from e
        function = ir.serde.deserialize_function(proto)
        if function.identifier() not in model.functions:
            model.functions[function.identifier()] = function
            added += 1
    if wanted:
        model.graph.opset_imports[DOMAIN] = 1
    return added


def _options(node: ir.Node) -> dict[str, int]:
    """What the function's body is unrolled for."""
    if node.op_type != "MultiScaleDeformableAttention":
        return {}
    locations = node.inputs[3]
    shape = None if locations is None else locations.shape
    levels = None if shape is None or len(shape) != 6 else shape[3]
    if not isinstance(levels, int):
        raise ExportError(
            f"node '{node.name}': sampling_locations expected rank 6 with a fixed number of "
            f"levels, got {shape}."
        )
    return {"levels": levels}
