"""Rows of a matrix in another order, some of them zeros: ports, letters, types.

Letters: R rows, C columns, N rows of the result. Row i of the result is row index[i] of x, or zeros
where index[i] is below 0.

Contract: every index is less than R.

A picture is cut into windows, rolled and padded by six or more operators, each of which copies all
of it. Together they move whole rows, so one gather does the same.
"""

from __future__ import annotations

from visionllm_edge.plugins.semantic_op import OpPort, SemanticOp

__all__ = ["GATHER_ROWS"]

GATHER_ROWS = SemanticOp(
    name="GatherRows",
    summary="y[i] = x[index[i]], or zeros where index[i] < 0.",
    inputs=(OpPort("x", ("R", "C"), ("float32",)), OpPort("index", ("N",), ("int32",))),
    outputs=(OpPort("y", ("N", "C"), ("float32",)),),
    attributes=(),
    module="visionllm_edge.plugins.gather_rows",
)
