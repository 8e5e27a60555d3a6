"""Merge equal initializers and nodes that compute the same from the same inputs."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, DeduplicateInitializersPass

__all__ = ["merge_duplicates"]


def merge_duplicates(model: ir.Model) -> int:
    """Merge; returns how many nodes and initializers went."""
    graph = model.graph
    before = len(graph) + len(graph.initializers)
    DeduplicateInitializersPass()(model)
    CommonSubexpressionEliminationPass()(model)
    return before - len(graph) - len(graph.initializers)
