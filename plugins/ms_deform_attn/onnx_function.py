"""Multi-scale deformable attention as an ONNX function: GridSample per level, then a weighted sum.

The body is unrolled for a number of levels. It stays at opset 19 or below: GridSample's mode is
called `bilinear` up to opset 19 and `linear` from 20 on, and TensorRT up to 11.1 silently takes
`linear` for NEAREST. Every inner name carries a prefix, because TensorRT up to 10.7 binds an inner
name to an outer tensor of the same name. Sampling runs in fp32 whatever the type of `value`.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from visionllm_edge.plugins.function_body import FunctionBody, require_opset
from visionllm_edge.plugins.ms_deform_attn.spec import MS_DEFORM_ATTN

__all__ = ["MAX_OPSET", "MIN_OPSET", "build_function"]

MIN_OPSET = 18
MAX_OPSET = 19
_PREFIX = "msda_"


def build_function(*, opset: int, levels: int = 4) -> onnx.FunctionProto:
    """Build the function body.

    Args:
        opset: default-domain opset of the model, 18 or 19.
        levels: L, what the body is unrolled for.

    Raises:
        ValueError: opset outside 18..19 (a vision graph must be exported at one of them).
    """
    require_opset(
        MS_DEFORM_ATTN,
        opset,
        MIN_OPSET,
        MAX_OPSET,
        "Export the graph at opset 19: GridSample's newer mode name is misread by TensorRT.",
    )
    body = FunctionBody(_PREFIX)
    value, shapes, starts, locations, weights = body.inputs(MS_DEFORM_ATTN)
    zero, one, two, three = (body.ints(f"i{i}", [i]) for i in range(4))
    minus_one = body.ints("minus_one", [-1])
    value_shape = body.add("Shape", [value], "value_shape")
    batch = body.add("Gather", [value_shape, zero], "batch", axis=0)
    heads = body.add("Gather", [value_shape, two], "heads", axis=0)
    depth = body.add("Gather", [value_shape, three], "depth", axis=0)
    planes = body.add("Mul", [batch, heads], "planes")
    location_shape = body.add("Shape", [locations], "location_shape")
    queries = body.add("Gather", [location_shape, one], "queries", axis=0)
    points = body.add("Gather", [location_shape, body.ints("i4", [4])], "points", axis=0)

    value_f32 = body.add("Cast", [value], "value_f32", to=TensorProto.FLOAT)
    # [N, S, M, D] -> [N, M, D, S]: heads join the batch, pixels come last.
    value_last = body.add("Transpose", [value_f32], "value_pixels_last", perm=[0, 2, 3, 1])
    flat_shape = body.add("Concat", [planes, depth, minus_one], "flat_shape", axis=0)
    flat = body.add("Reshape", [value_last, flat_shape], "flat")
    scale = body.add("Constant", [], "grid_scale", value_float=2.0)
    shift = body.add("Constant", [], "grid_shift", value_float=1.0)
    locations_f32 = body.add("Cast", [locations], "locations_f32", to=TensorProto.FLOAT)
    doubled = body.add("Mul", [locations_f32, scale], "grid_doubled")
    grid = body.add("Sub", [doubled, shift], "grid_all")
    # [N, Lq, M, L, P, 2] -> [L, N, M, Lq, P, 2] and [N, Lq, M, L, P] -> [L, N, M, Lq, P].
    grid_first = body.add("Transpose", [grid], "grid_levels_first", perm=[3, 0, 2, 1, 4, 5])
    weights_f32 = body.add("Cast", [weights], "weights_f32", to=TensorProto.FLOAT)
    mix_first = body.add("Transpose", [weights_f32], "mix_levels_first", perm=[3, 0, 2, 1, 4])
    grid_shape = body.add("Concat", [planes, queries, points, two], "grid_shape", axis=0)
    mix_shape = body.add("Concat", [planes, one, queries, points], "mix_shape", axis=0)
    shapes_i64 = body.add("Cast", [shapes], "shapes_i64", to=TensorProto.INT64)
    starts_i64 = body.add("Cast", [starts], "starts_i64", to=TensorProto.INT64)

    total = ""
    for level in range(levels):
        at = body.ints(f"l{level}_index", [level])
        # [1, 2] -> [2]: height and width of this level.
        size_row = body.add("Gather", [shapes_i64, at], f"l{level}_size_row", axis=0)
        size = body.add("Reshape", [size_row, minus_one], f"l{level}_size")
        height = body.add("Gather", [size, zero], f"l{level}_height", axis=0)
        width = body.add("Gather", [size, one], f"l{level}_width", axis=0)
        start = body.add("Gather", [starts_i64, at], f"l{level}_start", axis=0)
        pixels = body.add("Mul", [height, width], f"l{level}_pixels")
        end = body.add("Add", [start, pixels], f"l{level}_end")
        rows = body.add("Slice", [flat, start, end, two], f"l{level}_rows")
        plane_shape = body.add(
            "Concat", [planes, depth, height, width], f"l{level}_plane_shape", axis=0
        )
        plane = body.add("Reshape", [rows, plane_shape], f"l{level}_plane")
        grid_row = body.add("Gather", [grid_first, at], f"l{level}_grid_row", axis=0)
        level_grid = body.add("Reshape", [grid_row, grid_shape], f"l{level}_grid")
        sampled = body.add(
            "GridSample",
            [plane, level_grid],
            f"l{level}_sampled",
            mode="bilinear",
            padding_mode="zeros",
            align_corners=0,
        )
        mix_row = body.add("Gather", [mix_first, at], f"l{level}_mix_row", axis=0)
        mix = body.add("Reshape", [mix_row, mix_shape], f"l{level}_mix")
        weighted = body.add("Mul", [sampled, mix], f"l{level}_weighted")
        part = body.add("ReduceSum", [weighted, minus_one], f"l{level}_sum", keepdims=0)
        total = part if level == 0 else body.add("Add", [total, part], f"l{level}_total")

    # [N*M, D, Lq] -> [N, Lq, M, D].
    split_shape = body.add("Concat", [batch, heads, depth, queries], "split_shape", axis=0)
    split = body.add("Reshape", [total, split_shape], "split")
    ordered = body.add("Transpose", [split], "ordered", perm=[0, 3, 1, 2])
    output = body.add("CastLike", [ordered, value], MS_DEFORM_ATTN.outputs[0].name)
    return body.function(MS_DEFORM_ATTN, [output], opset=opset)
