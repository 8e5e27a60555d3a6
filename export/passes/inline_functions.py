"""Replace calls of semantic operators by the body of their function, then tidy up.

What is left are standard operators that any parser takes. A parser that expands functions itself
does the same, but TensorRT up to 10.7 binds an inner name to an outer tensor that happens to carry
it; inlined here, every value has a name of its own.

Afterwards what became constant is folded, types and shapes are inferred, CastLike becomes Cast (or
nothing, where the types agree) and equal nodes are merged: all layers of a decoder share one mask
and one set of row numbers.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    InlinePass,
)

from visionllm_edge.export.passes.fold_constants import fold_constants
from visionllm_edge.export.passes.infer_types import infer_types
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.errors import ExportError

__all__ = ["inline_functions"]

_SMALL = 64  # elements


def inline_functions(model: ir.Model, ops: Collection[str]) -> int:
    """Inline the functions of these operators; returns how many nodes were replaced.

    Raises:
        ExportError: the function is written for another opset than the graph.
    """
    calls = [n for n in model.graph if n.domain == DOMAIN and n.op_type in ops]
    if not calls:
        return 0
    ends = [value.name for value in model.graph.outputs]
    try:
        InlinePass(lambda function: function.name in ops)(model)
    except ValueError as e:
        raise ExportError(f"graph '{model.graph.name}': {e}") from e
    infer_types(model)
    _resolve_cast_like(model)
    fold_constants(model)
    _share_shapes(model)
    # Constants of the bodies are small; comparing the weights would read all of them.
    DeduplicateInitializersPass(size_limit=_SMALL)(model)
    CommonSubexpressionEliminationPass()(model)
    infer_types(model)
    assert [value.name for value in model.graph.outputs] == ends, "inlining keeps the ends"
    return len(calls)


def _share_shapes(model: ir.Model) -> None:
    """Let values of one and the same shape share one Shape node.

    Every layer asks for the shape of its own cache; what follows from it (rows, masks) is equal and
    can only be merged if the question is. A symbol of the graph's inputs is one number per call.
    """
    symbols = {
        axis.value
        for value in model.graph.inputs
        for axis in value.shape or ()
        if isinstance(axis, ir.SymbolicDim)
    }
    first: dict[tuple[object, ...], ir.Value] = {}
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "Shape" and node.domain == "" else None
        if value is None or value.shape is None or node.outputs[0].is_graph_output():
            continue
        axes = [axis if isinstance(axis, int) else axis.value for axis in value.shape]
        if any(not isinstance(axis, int) and axis not in symbols for axis in axes):
            continue
        attributes = [node.attributes.get_int(name, -1) for name in ("start", "end")]
        known = first.setdefault((*axes, "attributes", *attributes), node.outputs[0])
        if known is not node.outputs[0]:
            node.outputs[0].replace_all_uses_with(known)
            model.graph.remove(node, safe=True)


def _resolve_cast_like(model: ir.Model) -> None:
    """CastLike by the type that was inferred; a cast to the same type goes."""
    for node in list(model.graph):
        if node.domain != "" or node.op_type != "CastLike":
            continue
        value, like = node.inputs
        assert value is not None, "CastLike has two inputs"
        assert like is not None, "CastLike has two inputs"
        assert like.dtype is not None, "types are inferred"
        output = node.outputs[0]
        if value.dtype == like.dtype and not output.is_graph_output():
            output.replace_all_uses_with(value)
            model.graph.remove(node, safe=True)
            continue
        to = ir.AttrInt64("to", int(like.dtype))
        cast = ir.Node("", "Cast", [value], [to], num_outputs=1, name=node.name)
        cast.outputs[0].type = ir.TensorType(like.dtype)
        cast.outputs[0].shape = output.shape
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [cast], node.outputs, cast.outputs
        )
