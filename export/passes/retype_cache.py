"""Give the decoder's cache another element type, at the ends of the graph and at the operator.

A bundle for the CPU may hold its cache in half precision while everything else is fp32. On TensorRT
the whole graph has one precision and the cache goes with it, so lowering starts from one in fp32.
A cache of int8 stays what it is: its operator knows no other.
"""

from __future__ import annotations

import onnx_ir as ir

from visionllm_edge.runtime.backends.base import PAST_PREFIX, PRESENT_PREFIX

__all__ = ["retype_cache"]


def retype_cache(model: ir.Model, dtype: ir.DataType) -> int:
    """Retype the cache of a canonical graph; returns how many of its ends changed."""
    ends = [
        value
        for value in (*model.graph.inputs, *model.graph.outputs)
        if (value.name or "").startswith((PAST_PREFIX, PRESENT_PREFIX))
        and value.dtype not in (dtype, ir.DataType.INT8)
    ]
    for value in ends:
        value.dtype = dtype
    return len(ends)
