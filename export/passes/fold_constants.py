"""Compute at compile time what depends on no input.

Only onnxscript's plain constant folding: its full optimiser can write a Clip whose bounds do not
exist. Operators that only move numbers around are folded at any size, so that a transposed weight
is stored once and not transposed at every load; anything that makes its input larger keeps
onnxscript's size limits.
"""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from onnxscript import optimizer

__all__ = ["fold_constants"]

# It warns about every Split, which it leaves alone: nothing a user could act on.
_FOLDING_LOG = logging.getLogger("onnxscript.optimizer._constant_folding")

# Outputs are never larger than inputs. Gather is left out: it repeats rows.
_MOVES_ONLY = frozenset({"Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


def _should_fold(node: ir.Node) -> bool | None:
    return True if node.domain == "" and node.op_type in _MOVES_ONLY else None


def fold_constants(model: ir.Model) -> int:
    """Fold constants and turn Constant nodes into initializers; returns how many nodes went."""
    before = len(model.graph)
    level = _FOLDING_LOG.level
    _FOLDING_LOG.setLevel(logging.ERROR)
    try:
        optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=_should_fold)
    finally:
        _FOLDING_LOG.setLevel(level)
    optimizer.remove_unused_nodes(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return before - len(model.graph)
