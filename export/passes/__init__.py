"""Graph rewrites, one per file; each takes a model, changes it in place, returns its change count.

`CANONICAL_PASSES` run on every traced graph in this order. Lowering passes are not listed here:
`visionllm_edge.export.lowering` picks them per operator and target.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from visionllm_edge.export.passes.append_functions import append_functions
from visionllm_edge.export.passes.clear_metadata import clear_metadata
from visionllm_edge.export.passes.drop_dead_code import drop_dead_code
from visionllm_edge.export.passes.fold_constants import fold_constants
from visionllm_edge.export.passes.merge_duplicates import merge_duplicates
from visionllm_edge.export.passes.name_by_module import name_by_module
from visionllm_edge.export.passes.split_constants import split_constants

__all__ = ["CANONICAL_PASSES", "GraphPass"]

GraphPass = Callable[[ir.Model], int]

CANONICAL_PASSES: tuple[GraphPass, ...] = (
    name_by_module,  # before the notes that it reads are gone
    clear_metadata,
    split_constants,  # before folding, which then sees the parts as constants
    fold_constants,
    merge_duplicates,
    drop_dead_code,
    append_functions,
)
