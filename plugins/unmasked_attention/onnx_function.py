"""Full attention as an ONNX function: heads split, MatMul, bias, Softmax, MatMul, heads joined."""

from __future__ import annotations

import onnx

from visionllm_edge.plugins.function_body import FunctionBody, require_opset
from visionllm_edge.plugins.unmasked_attention.spec import UNMASKED_ATTENTION

__all__ = ["MAX_OPSET", "MIN_OPSET", "build_function"]

MIN_OPSET = 18
MAX_OPSET = 24
_PREFIX = "uattn_"


def build_function(*, opset: int) -> onnx.FunctionProto:
    """Build the function body for a model at `opset` (18 to 24).

    Raises:
        ValueError: opset outside 18..24.
    """
    require_opset(UNMASKED_ATTENTION, opset, MIN_OPSET, MAX_OPSET)
    body = FunctionBody(_PREFIX)
    names = body.inputs(UNMASKED_ATTENTION)
    query, key, value, bias, bias_index = names
    # No axis is left for Reshape to find (-1): it finds none in an empty batch.
    one, keep_two = body.ints("one", [1]), body.ints("keep_two", [0, 0])
    heads = body.add("Reshape", [body.attribute("num_heads", "int"), one], "heads")
    width = body.add("Shape", [query], "width", start=2)
    depth = body.add("Div", [width, heads], "depth")
    split_shape = body.add("Concat", [keep_two, heads, depth], "split_shape", axis=0)

    def split(rows: str, name: str, perm: list[int]) -> str:
        apart = body.add("Reshape", [rows, split_shape], f"{name}_apart")
        return body.add("Transpose", [apart], f"{name}_heads", perm=perm)

    scale = body.attribute("scale", "float")
    scaled = body.add("Mul", [query, scale], "scaled")
    rows = split(scaled, "query", [0, 2, 1, 3])
    keys = split(key, "key", [0, 2, 3, 1])
    values = split(value, "value", [0, 2, 1, 3])
    scores = body.add("MatMul", [rows, keys], "scores")  # [B, H, S, K]
    # The bias repeats every M entries, so the batch is seen as [B/M, M].
    scores_shape = body.add("Shape", [scores], "scores_shape")
    inner = body.add("Shape", [scores], "inner", start=1)
    repeat = body.add("Shape", [bias_index], "repeat")
    batch = body.add("Shape", [scores], "batch", end=1)
    groups = body.add("Div", [batch, repeat], "groups")
    grouped_shape = body.add("Concat", [groups, repeat, inner], "grouped_shape", axis=0)
    grouped = body.add("Reshape", [scores, grouped_shape], "grouped")
    picked = body.add("Gather", [bias, bias_index], "picked", axis=0)  # [M, J, T, U]
    added = body.add("Add", [grouped, picked], "added")
    biased = body.add("Reshape", [added, scores_shape], "biased")
    weights = body.add("Softmax", [biased], "weights", axis=-1)
    mixed = body.add("MatMul", [weights, values], "mixed")
    ordered = body.add("Transpose", [mixed], "ordered", perm=[0, 2, 1, 3])
    query_shape = body.add("Shape", [query], "query_shape")
    y = body.add("Reshape", [ordered, query_shape], UNMASKED_ATTENTION.outputs[0].name)
    return body.function(UNMASKED_ATTENTION, [y], opset=opset)
