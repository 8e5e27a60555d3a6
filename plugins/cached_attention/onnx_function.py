"""Cached causal attention as an ONNX function: ScatterND, explicit mask, MatMul, Softmax, MatMul.

No Attention operator: TensorRT's parser reads its causal flag as upper-left and drops the valid
length, both wrong for a cache. The mask is additive and finite (-30000 fits fp16, and exp of it is
exactly 0), since a backend may compute scores in fp16. The new rows go in by one ScatterND on the
buffer seen as [B*KV*C, Dh], which needs no transpose of the cache. Scores run over all C rows, so
shapes stay static; TensorRT fuses this form to its flash-attention kernel.
"""

from __future__ import annotations

import onnx
from onnx import helper

from visionllm_edge.plugins.cached_attention.spec import CACHED_ATTENTION
from visionllm_edge.plugins.function_body import FunctionBody
from visionllm_edge.plugins.semantic_op import DOMAIN

__all__ = ["MASK_VALUE", "MAX_OPSET", "MIN_OPSET", "build_function"]

MIN_OPSET = 18
MAX_OPSET = 21
MASK_VALUE = -30000.0
_PREFIX = "cattn_"


def _heads(body: FunctionBody, rows: str, count: str, name: str) -> str:
    """[B, S, count*Dh] -> [B, count, S, Dh]."""
    keep_two, minus_one = _PREFIX + "keep_two", _PREFIX + "minus_one"
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


def build_function(*, opset: int) -> onnx.FunctionProto:
    """Build the function body for a model at `opset` (18 to 21).

    Raises:
        ValueError: opset outside 18..21.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ValueError(
            f"CachedAttention: opset expected {MIN_OPSET}..{MAX_OPSET}, got {opset}. "
            "Export the decoder at opset 21."
        )
    body = FunctionBody(_PREFIX)
    query, key, value, past_key, past_value, past_length, cos, sin = (
        _PREFIX + port.name for port in CACHED_ATTENTION.inputs
    )
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
    new_value = _heads(body, value, kv_heads, "v")

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
        buffer = body.add("Reshape", [past, flat_shape], f"{name}_flat")
        update = body.add("Reshape", [new, flat_shape], f"{name}_update")
        written = body.add("ScatterND", [buffer, indices, update], f"{name}_written")
        return body.add("Reshape", [written, past_shape], name)

    present_key = append(past_key, rotated_key, "present_key")
    present_value = append(past_value, new_value, "present_value")

    # Grouped heads: [B, KV, C, Dh] -> [B, KV, H/KV, C, Dh] -> [B, H, C, Dh].
    group = body.add("Div", [num_heads, kv_heads], "group")
    expand_to = body.add("Concat", [batch, kv_heads, group, capacity, depth], "expand_to", axis=0)
    merge_to = body.add("Concat", [batch, num_heads, capacity, depth], "merge_to", axis=0)

    def repeat(buffer: str, name: str) -> str:
        apart = body.add("Unsqueeze", [buffer, two], f"{name}_apart")
        expanded = body.add("Expand", [apart, expand_to], f"{name}_expanded")
        return body.add("Reshape", [expanded, merge_to], f"{name}_repeated")

    keys, values = repeat(present_key, "keys"), repeat(present_value, "values")
    scalar_capacity = body.add("Squeeze", [capacity, zero], "scalar_capacity")
    columns = body.add("Range", [scalar_zero, scalar_capacity, scalar_one], "columns")
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
    return helper.make_function(
        DOMAIN,
        CACHED_ATTENTION.name,
        [query, key, value, past_key, past_value, past_length, cos, sin],
        [attention, present_key, present_value],
        body.nodes,
        [helper.make_opsetid("", opset)],
        attributes=[name for name, _ in CACHED_ATTENTION.attributes],
    )
