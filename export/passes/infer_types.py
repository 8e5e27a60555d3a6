"""Fill in element types and shapes of values that a rewrite left without.

ONNX follows the values of small vectors through a graph, which settles shapes that are computed.
On the way it takes the product of a column and a row of different lengths, as a table of positions
is made, for shapes that do not fit (`Invalid rank for Mul broadcasting`, seen with onnx 1.23) and
refuses the whole graph. Such a graph is done again without following values.
"""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from visionllm_edge.runtime.errors import ExportError

__all__ = ["infer_types"]

_LOG = logging.getLogger("onnx_ir.passes.common.shape_inference")


def infer_types(model: ir.Model) -> int:
    """Infer; returns how many values were without a type before.

    Raises:
        ExportError: a value of the graph still has no type.
    """
    before = sum(value.dtype is None for node in model.graph for value in node.outputs)
    if not _followed_values(model):
        ShapeInferencePass(check_type=True, data_prop=False)(model)
    for node in model.graph:
        for value in node.outputs:
            if value.dtype is None and value.name:
                raise ExportError(
                    f"graph '{model.graph.name}': the type of '{value.name}' ({node.op_type}) "
                    "cannot be inferred. Give the node's output a type where it is made."
                )
    return before


def _followed_values(model: ir.Model) -> bool:
    """Infer while following values; False where the graph was refused and is as it was.

    The pass tells a refusal by a line in its log only, which is kept from the user here: the
    second try tells what is left to tell.
    """
    refusals: list[logging.LogRecord] = []

    def passes(record: logging.LogRecord) -> bool:
        if record.exc_info:
            refusals.append(record)
        return not record.exc_info

    _LOG.addFilter(passes)
    try:
        ShapeInferencePass(check_type=True)(model)
    finally:
        _LOG.removeFilter(passes)
    return not refusals
