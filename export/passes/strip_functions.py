"""Remove the function bodies of operators that a plugin implements.

TensorRT 10.0 to 10.6 always expands a node that has a function in the model; only without it is the
plugin reached. The graph then runs nowhere without the plugin.
"""

from __future__ import annotations

import onnx_ir as ir

from visionllm_edge.plugins.semantic_op import DOMAIN

__all__ = ["strip_functions"]


def strip_functions(model: ir.Model) -> int:
    """Remove every function of our domain; returns how many."""
    ours = [identifier for identifier in model.functions if identifier[0] == DOMAIN]
    for identifier in ours:
        del model.functions[identifier]
    return len(ours)
