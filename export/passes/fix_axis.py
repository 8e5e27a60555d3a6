"""Write a number in the place of one symbol, wherever the graph's shapes have it."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["fix_axis"]


def fix_axis(model: ir.Model, symbol: str, size: int) -> int:
    """Fix an axis; returns how many values of the main graph have it."""
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    count = 0
    for value in values:
        axes = [] if value.shape is None else list(value.shape)
        fixed = [
            size if isinstance(axis, ir.SymbolicDim) and axis.value == symbol else axis
            for axis in axes
        ]
        if fixed != axes:
            value.shape = ir.Shape(fixed)
            count += 1
    return count
