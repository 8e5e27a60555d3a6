"""Which form a semantic operator takes on a target: the table, and the walk that applies it.

The table is data: operator x target -> forms in order of preference. A form may refuse a node
with a reason; the next one is tried. The report names the form of every node and why the better
ones were refused, so that no build chooses silently.

====================  ===============================  ==========================================
form                  node becomes                     runs on
====================  ===============================  ==========================================
function              itself, body in the model        any backend that knows ONNX functions
group_query_attention com.microsoft GroupQueryAttention ONNX Runtime, cache updated in place
====================  ===============================  ==========================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from visionllm_edge.export.passes.drop_dead_code import drop_dead_code
from visionllm_edge.export.passes.lower_cached_attention_to_gqa import (
    lower_cached_attention_to_gqa,
)
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.errors import ConfigError, ExportError

__all__ = ["FORMS", "TABLE", "TARGETS", "LoweredNode", "Target", "lower"]

Lowering = Callable[[ir.Model, ir.Node], "str | None"]


@dataclass(frozen=True)
class Target:
    """A device family: the backend that runs there and the precision its graphs have."""

    name: str
    backend: str
    precision: str


TARGETS: Mapping[str, Target] = MappingProxyType(
    {target.name: target for target in (Target("cpu", "onnxruntime", "fp32"),)}
)


@dataclass(frozen=True)
class LoweredNode:
    """What became of one semantic node.

    Attributes:
        node: its name in the graph.
        op: its operator.
        form: name of the form it got.
        reason: why this form, with the refusals of the forms that come before it.
    """

    node: str
    op: str
    form: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """Plain JSON types, as in the manifest."""
        return {"node": self.node, "op": self.op, "form": self.form, "reason": self.reason}


def _keep_function(model: ir.Model, node: ir.Node) -> str | None:
    known = node.op_identifier() in model.functions
    return None if known else "the model holds no function body for it"


FORMS: Mapping[str, Lowering] = MappingProxyType(
    {
        "function": _keep_function,
        "group_query_attention": lower_cached_attention_to_gqa,
    }
)

TABLE: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "CachedAttention": {"cpu": ("group_query_attention", "function")},
        "MultiScaleDeformableAttention": {"cpu": ("function",)},
    }
)


def lower(model: ir.Model, target: str) -> list[LoweredNode]:
    """Bring a canonical graph into the form of a target, in place.

    Returns:
        One entry per semantic node, in graph order.

    Raises:
        ConfigError: unknown target.
        ExportError: an operator without a form for the target, or every form refused a node.
    """
    if target not in TARGETS:
        raise ConfigError(f"target '{target}': expected one of {', '.join(sorted(TARGETS))}.")
    report = []
    for node in [node for node in model.graph.all_nodes() if node.domain == DOMAIN]:
        report.append(_lower_node(model, node, target))
    drop_dead_code(model)
    return report


def _lower_node(model: ir.Model, node: ir.Node, target: str) -> LoweredNode:
    op, name = node.op_type, node.name or ""
    forms = TABLE.get(op, {}).get(target, ())
    refusals: list[str] = []
    for form in forms:
        refusal = FORMS[form](model, node)
        if refusal is None:
            reason = "; ".join([*refusals, f"preference {len(refusals) + 1} of {len(forms)}"])
            return LoweredNode(name, op, form, reason)
        refusals.append(f"{form} refused: {refusal}")
    raise ExportError(
        f"graph '{model.graph.name}': node '{name}' ({op}) has no form for target '{target}': "
        f"{'; '.join(refusals) or 'the lowering table has no entry'}."
    )
