"""A decoder whose cache is of int8 becomes the same decoder with one in float32.

A gate runs this twin: what it computes has no rounding in it behind which an error could hide. The
scales go.
"""

from __future__ import annotations

import onnx_ir as ir

from visionllm_edge.export.passes.append_functions import append_functions
from visionllm_edge.export.passes.drop_dead_code import drop_dead_code
from visionllm_edge.plugins.semantic_op import DOMAIN

__all__ = ["widen_cache"]

_NARROW, _WIDE = "QuantizedCachedAttention", "CachedAttention"
_PAST, _PRESENT = slice(3, 5), slice(1, 3)
_INPUTS = 8


def widen_cache(model: ir.Model) -> int:
    """Replace every attention over a cache of int8; returns how many there were."""
    nodes = [n for n in model.graph if n.domain == DOMAIN and n.op_type == _NARROW]
    for node in nodes:
        for value in (*node.inputs[_PAST], *node.outputs[_PRESENT]):
            assert value is not None, f"{node.name}: a cache is no optional input"
            value.dtype = ir.DataType.FLOAT
        node.op_type = _WIDE
        node.resize_inputs(_INPUTS)
    if nodes:
        append_functions(model)
        drop_dead_code(model)
    return len(nodes)
