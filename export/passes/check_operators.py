"""Refuse a lowered graph that holds something the target's release lacks or gets wrong.

Checked for TensorRT; ONNX Runtime says itself what it does not know when it loads a graph.

Refusals, each by the node's name:
    1. a newer opset than the release takes, in the graph or a function.
    2. an operator that its parser or builder does not have (functions are looked into: a parser
       expands them), or of a domain that it does not know.
    3. an operator of ours with neither a function nor the plugin form.
    4. Attention with the causal flag or a valid length, which the parsers read wrongly or drop.
    5. TopK beyond the release's limit; ScatterND or ScatterElements that reduce; Resize that
       filters (antialias).
    6. GridSample in an element type that the release has no kernel for.
    7. an inner name of a function that equals a name outside, where the release binds it there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.errors import ExportError
from visionllm_edge.runtime.releases import Release

__all__ = ["check_operators", "has_block_weights"]

_TYPES = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
# Inputs of Attention from which on the parsers are known to go wrong: past key and value.
_ATTENTION_PAST = 4


def check_operators(model: ir.Model, release: Release, *, plugins: Collection[str] = ()) -> int:
    """Check a graph; returns how many nodes were looked at.

    Args:
        model: lowered.
        release: facts of the target's backend.
        plugins: operators of our domain whose nodes are in the plugin form.

    Raises:
        ExportError: see the refusals.
    """
    if release.operators is None:
        return 0
    count, newest = 0, release.opset_for(in_blocks=has_block_weights(model))
    for where, opsets, graph in _graphs(model):
        if opsets.get("", 1) > newest:
            raise ExportError(
                f"{where} is of opset {opsets['']}, {release.label} takes {newest}. "
                "Lower the opset first."
            )
        for node in graph.all_nodes():
            count += 1
            problem = _problem(model, node, release, plugins)
            if problem is not None:
                raise ExportError(f"{where}: node '{node.name}' ({node.op_type}) {problem}")
    if release.captures_names:
        _check_names(model, release)
    return count


def has_block_weights(model: ir.Model) -> bool:
    """Whether the graph dequantises weights in blocks, which is of opset 21."""
    return any(
        n.op_type == "DequantizeLinear" and "block_size" in n.attributes for n in model.graph
    )


def _graphs(model: ir.Model) -> Iterator[tuple[str, dict[str, int], ir.Graph]]:
    yield f"graph '{model.graph.name}'", model.graph.opset_imports, model.graph
    for function in model.functions.values():
        yield f"function '{function.name}'", function.opset_imports, function.graph


def _problem(
    model: ir.Model, node: ir.Node, release: Release, plugins: Collection[str]
) -> str | None:
    assert release.operators is not None, "checked for releases with a list"
    if node.domain == DOMAIN:
        known = node.op_type in plugins or node.op_identifier() in model.functions
        return None if known else "has neither a function nor a plugin. Inline it."
    if node.domain != "":
        return f"is of domain '{node.domain}', which {release.label} does not know."
    if node.op_type not in release.operators:
        return f"is not among the operators of {release.label}. Write it in other operators."
    return _misread(node, release)


def _misread(node: ir.Node, release: Release) -> str | None:
    """What the release has but computes differently, or only in part."""
    attributes, op = node.attributes, node.op_type
    if op == "Attention" and release.attention_causal != "onnx":
        late = [value for value in node.inputs[_ATTENTION_PAST:] if value is not None]
        if attributes.get_int("is_causal", 0) != 0 or late:
            return (
                f"uses the causal flag or cache inputs, which {release.label} reads as "
                f"{release.attention_causal} or drops. Give it an explicit mask."
            )
    if op == "TopK" and release.max_top_k:
        k = None if node.inputs[1] is None else ir.convenience.get_const_tensor(node.inputs[1])
        if k is not None and int(k.numpy().item()) > release.max_top_k:
            return f"takes {int(k.numpy().item())}, {release.label} at most {release.max_top_k}."
    reduction = attributes.get_string("reduction", "none")
    if op in ("ScatterND", "ScatterElements") and reduction != "none":
        return f"reduces, which {release.label} does not."
    if op == "Resize" and attributes.get_int("antialias", 0) != 0:
        return f"filters (antialias), which {release.label} does not."
    if op == "GridSample":
        kinds = [
            _TYPES.get(v.dtype, str(v.dtype)) for v in node.inputs if v is not None and v.dtype
        ]
        if set(kinds) - set(release.grid_sample_types) or len(set(kinds)) > 1:
            return (
                f"is of types {', '.join(kinds)}; {release.label} wants one of "
                f"{', '.join(release.grid_sample_types)} for both."
            )
    return None


def _check_names(model: ir.Model, release: Release) -> None:
    outer = {value.name for value in model.graph.inputs} | set(model.graph.initializers)
    outer |= {value.name for node in model.graph for value in node.outputs}
    for function in model.functions.values():
        inner = {value.name for value in function.inputs}
        inner |= {value.name for node in function for value in node.outputs}
        if inner & outer:
            name = min(str(name) for name in inner & outer)
            raise ExportError(
                f"function '{function.name}': inner name '{name}' also stands outside, and "
                f"{release.label} would bind it there. Give it a prefix."
            )
