"""Remove nodes, initializers and functions that no output depends on."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

__all__ = ["drop_dead_code"]


def drop_dead_code(model: ir.Model) -> int:
    """Remove dead code; returns how many nodes and initializers went."""
    graph = model.graph
    before = len(graph) + len(graph.initializers)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    return before - len(graph) - len(graph.initializers)
