"""Cached causal attention as an ONNX function: ScatterND, explicit mask, MatMul, Softmax, MatMul.

No Attention operator: TensorRT's parser reads its causal flag as upper-left and drops the valid
length, both wrong for a cache. The mask is additive and finite (-30000 fits fp16, and exp of it is
exactly 0), since a backend may compute scores in fp16. The new rows go in by one ScatterND on the
buffer seen as [B*KV*C, Dh], which needs no transpose of the cache. Scores run over all C rows, so
shapes stay static; TensorRT fuses this form to its flash-attention kernel.

How the new rows meet the old ones is a choice of the target, so the body comes in three writings:

==================  =============================================================================
`scatter_nd`        the buffer is written, then read: standard operators of every opset from 18 on
`tensor_scatter`    the same with TensorScatter of opset 24, which updates the buffer in place
`concat`            old and new rows side by side are read, so that attention does not wait for the
                    buffer; the buffer is written by ScatterND beside it
==================  =============================================================================

A cache of another type than the rest is cast to it when it is read. On ONNX Runtime the body can be
one com.microsoft GroupQueryAttention instead (`contrib`), for a node that operator takes: see
`export/passes/lower_cached_attention_to_gqa.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import AttributeProto, TensorProto, helper

from visionllm_edge.plugins.cached_attention.spec import CACHED_ATTENTION
from visionllm_edge.plugins.function_body import FunctionBody, require_opset

__all__ = [
    "CONTRIB_DOMAIN",
    "MASK_VALUE",
    "MAX_OPSET",
    "MIN_OPSET",
    "WRITINGS",
    "build_function",
    "standard_body",
]

MIN_OPSET = 18
MAX_OPSET = 24
MASK_VALUE = -30000.0
CONTRIB_DOMAIN = "com.microsoft"
WRITINGS = {"scatter_nd": MIN_OPSET, "tensor_scatter": 24, "concat": MIN_OPSET}
"""How new rows meet the cache -> oldest opset that has it."""
_PREFIX = "cattn_"


def _heads(body: FunctionBody, rows: str, count: str, name: str) -> str:
    """[B, S, count*Dh] -> [B, count, S, Dh]."""
    keep_two, minus_one = body.prefix + "keep_two", body.prefix + "minus_one"
    shape = body.add("Concat", [keep_two, count, minus_one], f"{name}_shape", axis=0)
    split = body.add("Reshape", [rows, shape], f"{name}_split")
    return body.add("Transpose", [split], f"{name}_heads", perm=[0, 2, 1, 3])


def _rotate(body: FunctionBody, rows: str, cos: str, sin: str, name: str) -> str:
    """LLaMA's half-split rotation of [B, heads, S, Dh] by [S, Dh/2] tables."""
    halves = (f"{name}_first", f"{name}_second")
    first, second = body.add_pair("Split", [rows], halves, axis=-1, num_outputs=2)
    first_cos = body.add("Mul", [first, cos], f"{name}_first_cos")
    second_sin = body.add("Mul", [second, sin], f"{name}_second_sin")
    second_cos = body.add("Mul", [second, cos], f"{name}_second_cos")
    first_sin = body.add("Mul", [first, sin], f"{name}_first_sin")
    left = body.add("Sub", [first_cos, second_sin], f"{name}_left")
    right = body.add("Add", [second_cos, first_sin], f"{name}_right")
    return body.add("Concat", [left, right], f"{name}_rotated", axis=-1)


def build_function(
    *, opset: int, writing: str = "scatter_nd", contrib: bool = False
) -> onnx.FunctionProto:
    """Build the function body for a model at `opset` (18 to 24).

    Args:
        opset: default-domain opset of the model.
        writing: a key of `WRITINGS`.
        contrib: use ONNX Runtime's GroupQueryAttention; such a file runs nowhere else.

    Raises:
        ValueError: an opset that does not have it.
    """
    require_opset(
        CACHED_ATTENTION, opset, WRITINGS[writing], MAX_OPSET, "Export the decoder at opset 21."
    )
    body = FunctionBody(_PREFIX)
    names = body.inputs(CACHED_ATTENTION)
    outputs = _contrib(body, *names) if contrib else standard_body(body, writing, names)
    return body.function(
        CACHED_ATTENTION, outputs, opset=opset, contrib=CONTRIB_DOMAIN if contrib else None
    )


def _contrib(
    body: FunctionBody,
    query: str,
    key: str,
    value: str,
    past_key: str,
    past_value: str,
    past_length: str,
    cos: str,
    sin: str,
) -> list[str]:
    """The operator wants the number of the last valid row, and the number of valid rows."""
    length = body.add("Shape", [query], "length", start=1, end=2)
    end = body.add("Add", [past_length, length], "end")
    last_row = body.add("Sub", [end, body.ints("one", [1])], "last_row")
    seqlens_k = body.add("Cast", [last_row], "seqlens_k", to=TensorProto.INT32)
    scalar_end = body.add("Squeeze", [end, body.ints("axis", [0])], "scalar_end")
    total = body.add("Cast", [scalar_end], "total", to=TensorProto.INT32)
    outputs = [_PREFIX + port.name for port in CACHED_ATTENTION.outputs]
    node = helper.make_node(
        "GroupQueryAttention",
        [query, key, value, past_key, past_value, seqlens_k, total, cos, sin],
        outputs,
        domain=CONTRIB_DOMAIN,
        do_rotary=1,
        rotary_interleaved=0,
    )
    kinds = {"int": AttributeProto.INT, "float": AttributeProto.FLOAT}
    node.attribute.extend(
        AttributeProto(name=name, ref_attr_name=name, type=kinds[kind])
        for name, kind in CACHED_ATTENTION.attributes
    )
    body.nodes.append(node)
    return outputs


def _kept(body: FunctionBody, rows: str, past: str, scale: str | None, name: str) -> str:
    """New rows [B, KV, S, Dh] as the cache keeps them."""
    if scale is not None:
        steps = body.add("Div", [rows, scale], f"{name}_steps")
        whole = body.add("Round", [steps], f"{name}_whole")
        ends = [
            body.add("Constant", [], f"{name}_{end}", value_float=limit)
            for end, limit in (("lowest", -127.0), ("highest", 127.0))
        ]
        rows = body.add("Clip", [whole, *ends], f"{name}_clipped")
    return body.add("CastLike", [rows, past], name)


def _read(body: FunctionBody, buffer: str, like: str, scale: str | None, name: str) -> str:
    """The cache's rows in the type of `like`."""
    wide = body.add("CastLike", [buffer, like], f"{name}_wide")
    return wide if scale is None else body.add("Mul", [wide, scale], f"{name}_scaled")


def standard_body(
    body: FunctionBody,
    writing: str,
    inputs: Sequence[str],
    scales: tuple[str | None, str | None] = (None, None),
) -> list[str]:
    """Append the body in standard operators.

    Args:
        body: where the nodes go.
        writing: a key of `WRITINGS`.
        inputs: the formal parameters, in the order of spec.py.
        scales: of keys and values, [KV, Dh], where the cache holds whole numbers.

    Returns:
        Names of the three results.
    """
    query, key, value, past_key, past_value, past_length, cos, sin = inputs
    zero, one, two = (body.ints(f"i{i}", [i]) for i in range(3))
    minus_one = body.ints("minus_one", [-1])
    body.ints("keep_two", [0, 0])
    num_heads = body.add("Reshape", [body.attribute("num_heads", "int"), one], "num_heads")
    kv_heads = body.add("Reshape", [body.attribute("kv_num_heads", "int"), one], "kv_heads")
    factor = body.attribute("scale", "float")
    scale = body.add("CastLike", [factor, query], "scale")

    # Positions of the new rows: past_length .. past_length + S - 1.
    query_shape = body.add("Shape", [query], "query_shape")
    length = body.add("Gather", [query_shape, one], "length", axis=0)
    scalar_zero = body.add("Constant", [], "scalar_zero", value_int=0)
    scalar_one = body.add("Constant", [], "scalar_one", value_int=1)
    scalar_length = body.add("Squeeze", [length, zero], "scalar_length")
    steps = body.add("Range", [scalar_zero, scalar_length, scalar_one], "steps")
    positions = body.add("Add", [steps, past_length], "positions")
    cos_rows = body.add("Gather", [cos, positions], "cos_rows", axis=0)
    sin_rows = body.add("Gather", [sin, positions], "sin_rows", axis=0)

    rotated_query = _rotate(body, _heads(body, query, num_heads, "q"), cos_rows, sin_rows, "q")
    rotated_key = _rotate(body, _heads(body, key, kv_heads, "k"), cos_rows, sin_rows, "k")
    # From here on as the cache keeps them: attention reads the cache's rounding.
    key_steps, value_steps = (
        None if scale_name is None else body.add("Unsqueeze", [scale_name, one], f"{name}_steps")
        for name, scale_name in zip(("keys", "values"), scales, strict=True)
    )
    new_key = _kept(body, rotated_key, past_key, key_steps, "new_key")
    value_heads = _heads(body, value, kv_heads, "v")
    new_value = _kept(body, value_heads, past_value, value_steps, "new_value")

    # Rows of the buffer seen as [B*KV*C, Dh]: plane * C + position, plane = batch * KV + kv head.
    past_shape = body.add("Shape", [past_key], "past_shape")
    batch = body.add("Gather", [past_shape, zero], "batch", axis=0)
    capacity = body.add("Gather", [past_shape, two], "capacity", axis=0)
    depth = body.add("Gather", [past_shape, body.ints("i3", [3])], "depth", axis=0)
    planes = body.add("Mul", [batch, kv_heads], "planes")
    scalar_planes = body.add("Squeeze", [planes, zero], "scalar_planes")
    plane = body.add("Range", [scalar_zero, scalar_planes, scalar_one], "plane")
    plane_start = body.add("Mul", [plane, capacity], "plane_start")
    plane_column = body.add("Unsqueeze", [plane_start, one], "plane_column")
    rows = body.add("Add", [plane_column, positions], "rows")
    indices = body.add("Reshape", [rows, body.ints("column", [-1, 1])], "indices")
    flat_shape = body.add("Concat", [minus_one, depth], "flat_shape", axis=0)

    def append(past: str, new: str, name: str) -> str:
        if writing == "tensor_scatter":
            return body.add("TensorScatter", [past, new, past_length], name, axis=2)
        buffer = body.add("Reshape", [past, flat_shape], f"{name}_flat")
        update = body.add("Reshape", [new, flat_shape], f"{name}_update")
        written = body.add("ScatterND", [buffer, indices, update], f"{name}_written")
        return body.add("Reshape", [written, past_shape], name)

    present_key = append(past_key, new_key, "present_key")
    present_value = append(past_value, new_value, "present_value")

    # Rows that are read, and the position of each: row j of the buffer is position j.
    seen_key, seen_value, seen = present_key, present_value, capacity
    scalar_capacity = body.add("Squeeze", [capacity, zero], "scalar_capacity")
    columns = body.add("Range", [scalar_zero, scalar_capacity, scalar_one], "columns")
    if writing == "concat":
        seen_key = body.add("Concat", [past_key, new_key], "seen_key", axis=2)
        seen_value = body.add("Concat", [past_value, new_value], "seen_value", axis=2)
        seen = body.add("Add", [capacity, length], "seen")
        # A row of the buffer that is not valid stands behind every row that asks.
        valid = body.add("Less", [columns, past_length], "valid")
        never = body.add("Add", [past_length, length], "never")
        old = body.add("Where", [valid, columns, never], "old_columns")
        columns = body.add("Concat", [old, positions], "all_columns", axis=0)

    # Grouped heads: [B, KV, C, Dh] -> [B, KV, H/KV, C, Dh] -> [B, H, C, Dh].
    group = body.add("Div", [num_heads, kv_heads], "group")
    expand_to = body.add("Concat", [batch, kv_heads, group, seen, depth], "expand_to", axis=0)
    merge_to = body.add("Concat", [batch, num_heads, seen, depth], "merge_to", axis=0)

    def repeat(buffer: str, steps: str | None, name: str) -> str:
        wide = _read(body, buffer, query, steps, name)
        apart = body.add("Unsqueeze", [wide, two], f"{name}_apart")
        expanded = body.add("Expand", [apart, expand_to], f"{name}_expanded")
        return body.add("Reshape", [expanded, merge_to], f"{name}_repeated")

    keys, values = repeat(seen_key, key_steps, "keys"), repeat(seen_value, value_steps, "values")
    own = body.add("Unsqueeze", [positions, one], "own_position")
    future = body.add("Greater", [columns, own], "future")
    hidden = body.add("Constant", [], "mask_hidden", value_float=MASK_VALUE)
    visible = body.add("Constant", [], "mask_visible", value_float=0.0)
    mask_f32 = body.add("Where", [future, hidden, visible], "mask_f32")
    mask = body.add("CastLike", [mask_f32, query], "mask")

    keys_last = body.add("Transpose", [keys], "keys_last", perm=[0, 1, 3, 2])
    scaled = body.add("Mul", [rotated_query, scale], "q_scaled")
    scores = body.add("MatMul", [scaled, keys_last], "scores")
    masked = body.add("Add", [scores, mask], "masked")
    weights = body.add("Softmax", [masked], "weights", axis=-1)
    mixed = body.add("MatMul", [weights, values], "mixed")
    ordered = body.add("Transpose", [mixed], "ordered", perm=[0, 2, 1, 3])
    attention = body.add("Reshape", [ordered, query_shape], "attention")
    return [attention, present_key, present_value]
