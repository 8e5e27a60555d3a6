"""CachedAttention -> com.microsoft GroupQueryAttention with its own rotation and a shared cache.

ONNX Runtime's operator works in place when past and present are bound to the same buffer, so a
token costs no copy of the cache. It wants the number of the last valid row (`seqlens_k` =
past_length + S - 1, int32, one per batch row) and the total length (int32 scalar); both are
computed in the graph from past_length and the length of the query, once for all layers.

The other way keeps the node, for the kernel of its name, and makes the operator the body of its
function: what runs where the kernel library is not.

Refusals (the node keeps its function):
    1. head size not a multiple of 16: the CPU kernel refuses the rotation at run time.
    2. batch not fixed to 1: the kernel appends several rows to a filled cache only there.
    3. element type other than float32 and float16.
    4. a cache of another type than the new rows.
"""

from __future__ import annotations

import onnx_ir as ir

from visionllm_edge.plugins.cached_attention.onnx_function import CONTRIB_DOMAIN, build_function

__all__ = ["lower_cached_attention_to_gqa", "write_gqa_function"]

_PREFIX = "gqa_"


def lower_cached_attention_to_gqa(model: ir.Model, node: ir.Node) -> str | None:
    """Lower one node.

    Args:
        model: the graph's model; changed in place unless refused.
        node: a CachedAttention node of its main graph.

    Returns:
        None if lowered, else the reason for the refusal.
    """
    refusal = _refusal(node)
    if refusal is not None:
        return refusal
    query, key, value, past_key, past_value, past_length, cos, sin = node.inputs
    assert query is not None, "all inputs are required"
    assert past_length is not None, "all inputs are required"
    seqlens_k, total = _lengths(model, node, query, past_length)
    replacement = ir.Node(
        CONTRIB_DOMAIN,
        "GroupQueryAttention",
        [query, key, value, past_key, past_value, seqlens_k, total, cos, sin],
        [
            ir.AttrInt64("num_heads", node.attributes["num_heads"].as_int()),
            ir.AttrInt64("kv_num_heads", node.attributes["kv_num_heads"].as_int()),
            ir.AttrFloat32("scale", node.attributes["scale"].as_float()),
            ir.AttrInt64("do_rotary", 1),
            ir.AttrInt64("rotary_interleaved", 0),
        ],
        num_outputs=3,
        name=node.name,
    )
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], [replacement], node.outputs, replacement.outputs
    )
    model.graph.opset_imports[CONTRIB_DOMAIN] = 1
    return None


def write_gqa_function(model: ir.Model, node: ir.Node) -> str | None:
    """Make the operator the body of the node's function; the node stays.

    Args:
        model: the graph's model; changed in place unless refused.
        node: a CachedAttention node.

    Returns:
        None if done, else the reason for the refusal.
    """
    if node.op_identifier() not in model.functions:
        return "the model holds no function body for it"
    refusal = _refusal(node)
    if refusal is not None:
        return refusal
    if CONTRIB_DOMAIN not in model.functions[node.op_identifier()].opset_imports:
        proto = build_function(opset=model.graph.opset_imports[""], contrib=True)
        model.functions[node.op_identifier()] = ir.serde.deserialize_function(proto)
        model.graph.opset_imports[CONTRIB_DOMAIN] = 1
    return None


def _refusal(node: ir.Node) -> str | None:
    query, past_key = node.inputs[0], node.inputs[3]
    assert query is not None, "all inputs are required"
    assert past_key is not None, "all inputs are required"
    if past_key.shape is None or not isinstance(past_key.shape[3], int):
        return "head size unknown"
    if past_key.shape[3] % 16:
        return f"head size {past_key.shape[3]} is not a multiple of 16"
    if past_key.shape[0] != 1:
        return f"batch is {past_key.shape[0]}, expected 1"
    if past_key.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"element type {past_key.dtype} has no kernel"
    if query.dtype != past_key.dtype:
        return f"the cache is {past_key.dtype}, the new rows are {query.dtype}"
    return None


def _lengths(
    model: ir.Model, before: ir.Node, query: ir.Value, past_length: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """seqlens_k int32 [1] and total_sequence_length int32 scalar; made once per past_length."""
    graph = model.graph
    names = f"{_PREFIX}seqlens_k.{past_length.name}", f"{_PREFIX}total.{past_length.name}"
    existing = {
        output.name: output
        for node in graph
        if (node.name or "").startswith(_PREFIX)
        for output in node.outputs
    }
    if names[0] in existing:
        return existing[names[0]], existing[names[1]]
    nodes: list[ir.Node] = []

    def add(op: str, inputs: list[ir.Value], output: str, **attributes: int) -> ir.Value:
        nodes.append(
            ir.Node(
                "",
                op,
                inputs,
                [ir.AttrInt64(name, number) for name, number in attributes.items()],
                num_outputs=1,
                name=_PREFIX + output,
            )
        )
        nodes[-1].outputs[0].name = f"{_PREFIX}{output}"
        return nodes[-1].outputs[0]

    def constant(name: str, number: int) -> ir.Value:
        tensor = ir.tensor([number], dtype=ir.DataType.INT64, name=_PREFIX + name)
        result = ir.Value(
            name=_PREFIX + name,
            shape=ir.Shape([1]),
            type=ir.TensorType(ir.DataType.INT64),
            const_value=tensor,
        )
        graph.register_initializer(result)
        return result

    int32 = ir.DataType.INT32.value
    length = add("Shape", [query], "length", start=1, end=2)
    end = add("Add", [past_length, length], "end")
    last = add("Sub", [end, constant(f"one.{past_length.name}", 1)], "last_row")
    seqlens_k = add("Cast", [last], f"seqlens_k.{past_length.name}", to=int32)
    scalar = add("Squeeze", [end, constant(f"axis.{past_length.name}", 0)], "end_scalar")
    total = add("Cast", [scalar], f"total.{past_length.name}", to=int32)
    graph.insert_before(before, nodes)
    return seqlens_k, total
