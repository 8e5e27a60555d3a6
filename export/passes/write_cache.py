"""Choose how a CachedAttention node meets its cache: the writing of its function's body.

The writings are those of `visionllm_edge.plugins.cached_attention.onnx_function`; the node itself
stays, and its function is inlined afterwards. TensorScatter is of opset 24, to which the graph is
brought.

Refusals:
    1. no function in the model: there is nothing to write differently.
    2. TensorScatter with more than one sequence: it wants a row number for each of them.
    3. TensorScatter on a cache whose rows are not a number: no builder takes it.
    4. an operator of the graph that means something else at opset 24.
"""

from __future__ import annotations

import onnx_ir as ir

from visionllm_edge.export.passes.raise_opset import raise_opset
from visionllm_edge.plugins.cached_attention.onnx_function import WRITINGS, build_function
from visionllm_edge.runtime.errors import ExportError

__all__ = ["write_cache"]


def write_cache(model: ir.Model, node: ir.Node, writing: str) -> str | None:
    """Give the node's function another body.

    Args:
        model: changed in place unless refused.
        node: a CachedAttention node.
        writing: a key of `WRITINGS`.

    Returns:
        None if done, else the reason for the refusal.
    """
    if node.op_identifier() not in model.functions:
        return "the model holds no function body for it"
    past = node.inputs[3]
    if writing == "tensor_scatter":
        if past is None or past.shape is None or past.shape[0] != 1:
            return "the batch is not fixed to 1"
        if not isinstance(past.shape[2], int):
            return "the capacity of the cache is not fixed"
    try:
        raise_opset(model, WRITINGS[writing])
    except ExportError as e:
        return str(e)
    proto = build_function(opset=model.graph.opset_imports[""], writing=writing)
    model.functions[node.op_identifier()] = ir.serde.deserialize_function(proto)
    return None
