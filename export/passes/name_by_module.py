"""Name every node after the module of the source model that it came from.

A profiler then speaks of ``vision_model.encoder.layers.3.self_attn.q_proj/linear`` in place of
``node_linear_17``. The exporter notes the module on each node; a node without a note, and every
node of a function body, keeps its name.
"""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

__all__ = ["name_by_module"]

_SCOPES = "pkg.torch.onnx.name_scopes"
# What the exporter writes for sizes, which belong to no module.
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"


def name_by_module(model: ir.Model) -> int:
    """Rename the nodes of the main graph; returns how many got a new name."""
    used: Counter[str] = Counter()
    renamed = 0
    for node in model.graph:
        scopes = _scopes(node)
        if not scopes:
            continue
        *modules, call = scopes
        module = next((name for name in reversed(modules) if name and name != _NO_MODULE), "")
        plain = f"{module}/{call}" if module else call
        used[plain] += 1
        node.name = plain if used[plain] == 1 else f"{plain}.{used[plain]}"
        renamed += 1
    return renamed


def _scopes(node: ir.Node) -> list[str]:
    """Modules from the outside in, then the call inside the innermost one."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, ""))
    except (SyntaxError, ValueError):
        return []
    if not isinstance(scopes, list) or not all(isinstance(name, str) for name in scopes):
        return []
    return scopes
