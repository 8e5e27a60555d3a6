"""Prompt pooling as an ONNX function: the exact fold, two small matrix products and no gather.

The tent matrices say how much a mask pixel takes from a cell along one axis; between them stands
the mask, the result is one weight per cell. The weights of a region are laid out beside zeros for
all other images, so that one product with the whole feature table serves every region, and an image
index out of range gives zeros. Everything runs in fp32 whatever the type of the features. Every
inner name carries a prefix, because TensorRT up to 10.7 binds an inner name to an outer tensor of
the same name.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from visionllm_edge.plugins.function_body import FunctionBody, require_opset
from visionllm_edge.plugins.grid_sample_prompt_pool.spec import GRID_SAMPLE_PROMPT_POOL

__all__ = ["MAX_OPSET", "MIN_OPSET", "build_function"]

MIN_OPSET = 18
MAX_OPSET = 21
_PREFIX = "gspp_"


def build_function(*, opset: int) -> onnx.FunctionProto:
    """Build the function body.

    Args:
        opset: default-domain opset of the model, 18 to 21.

    Raises:
        ValueError: opset outside that range.
    """
    require_opset(
        GRID_SAMPLE_PROMPT_POOL, opset, MIN_OPSET, MAX_OPSET, "Export the graph at opset 19."
    )
    body = FunctionBody(_PREFIX)
    features, masks, region_image = body.inputs(GRID_SAMPLE_PROMPT_POOL)
    one = body.ints("i1", [1])
    axes = [body.add("Constant", [], f"axis_{i}", value_int=i) for i in range(4)]
    feature_shape = body.add("Shape", [features], "feature_shape")
    mask_shape = body.add("Shape", [masks], "mask_shape")
    images, grid_height, grid_width, channels = (
        body.add("Gather", [feature_shape, axis], name, axis=0)
        for axis, name in zip(
            axes, ("images", "grid_height", "grid_width", "channels"), strict=True
        )
    )
    regions, height, width = (
        body.add("Gather", [mask_shape, axis], name, axis=0)
        for axis, name in zip(axes, ("regions", "height", "width"), strict=False)
    )

    zero = body.add("Constant", [], "zero", value_float=0.0)
    empty = body.add("Equal", [masks, zero], "is_background")
    filled = body.add("Not", [empty], "is_foreground")
    foreground = body.add("Cast", [filled], "foreground", to=TensorProto.FLOAT)
    tent_y = _tent(body, "y", height, grid_height)
    tent_x = _tent(body, "x", width, grid_width)
    # [R, H, W] @ [W, Gw] -> [R, H, Gw]; [Gh, H] @ that -> [R, Gh, Gw].
    rows = body.add("MatMul", [foreground, tent_x], "rows_folded")
    tent_y_first = body.add("Transpose", [tent_y], "tent_y_cells_first", perm=[1, 0])
    folded = body.add("MatMul", [tent_y_first, rows], "folded")
    both = body.ints("mask_axes", [1, 2])
    count = body.add("ReduceSum", [foreground, both], "count", keepdims=1)
    least = body.add("Constant", [], "least_count", value_float=1.0)
    divisor = body.add("Max", [count, least], "divisor")
    weights = body.add("Div", [folded, divisor], "weights")

    cells = body.add("Mul", [grid_height, grid_width], "cells")
    table_rows = body.add("Mul", [images, cells], "table_rows")
    regions_1, cells_1, table_rows_1, channels_1 = (
        body.add("Reshape", [value, one], f"{name}_vector")
        for value, name in (
            (regions, "regions"),
            (cells, "cells"),
            (table_rows, "table_rows"),
            (channels, "channels"),
        )
    )
    # Weights of region r stand at the rows of its image, zeros at all others: [R, N * cells].
    weight_shape = body.add("Concat", [regions_1, one, cells_1], "weight_shape", axis=0)
    weight_rows = body.add("Reshape", [weights, weight_shape], "weight_rows")
    image_numbers = body.add("Range", [axes[0], images, axes[1]], "image_numbers")
    region_i64 = body.add("Cast", [region_image], "region_image_i64", to=TensorProto.INT64)
    region_column = body.add("Unsqueeze", [region_i64, one], "region_column")
    chosen = body.add("Equal", [region_column, image_numbers], "is_chosen")
    chosen_f32 = body.add("Cast", [chosen], "chosen", to=TensorProto.FLOAT)
    chosen_rows = body.add("Unsqueeze", [chosen_f32, body.ints("i2", [2])], "chosen_rows")
    placed = body.add("Mul", [chosen_rows, weight_rows], "placed")
    placed_shape = body.add("Concat", [regions_1, table_rows_1], "placed_shape", axis=0)
    matrix = body.add("Reshape", [placed, placed_shape], "matrix")
    table_shape = body.add("Concat", [table_rows_1, channels_1], "table_shape", axis=0)
    features_f32 = body.add("Cast", [features], "features_f32", to=TensorProto.FLOAT)
    table = body.add("Reshape", [features_f32, table_shape], "table")
    product = body.add("MatMul", [matrix, table], "product")
    output = body.add("CastLike", [product, features], GRID_SAMPLE_PROMPT_POOL.outputs[0].name)
    return body.function(GRID_SAMPLE_PROMPT_POOL, [output], opset=opset)


def _tent(body: FunctionBody, axis: str, pixels: str, cells: str) -> str:
    """[pixels, cells]: max(0, 1 - |p * cells / pixels - 0.5 - c|) in fp32."""
    start = body.add("Constant", [], f"{axis}_start", value_int=0)
    step = body.add("Constant", [], f"{axis}_step", value_int=1)
    half = body.add("Constant", [], f"{axis}_half", value_float=0.5)
    unit = body.add("Constant", [], f"{axis}_unit", value_float=1.0)
    pixel_numbers = body.add("Range", [start, pixels, step], f"{axis}_pixel_numbers")
    cell_numbers = body.add("Range", [start, cells, step], f"{axis}_cell_numbers")
    # The product is a whole number, so that only the division rounds.
    scaled = body.add("Mul", [pixel_numbers, cells], f"{axis}_scaled")
    scaled_f32 = body.add("Cast", [scaled], f"{axis}_scaled_f32", to=TensorProto.FLOAT)
    pixels_f32 = body.add("Cast", [pixels], f"{axis}_pixels_f32", to=TensorProto.FLOAT)
    quotient = body.add("Div", [scaled_f32, pixels_f32], f"{axis}_quotient")
    point = body.add("Sub", [quotient, half], f"{axis}_point")
    column = body.add("Unsqueeze", [point, body.ints(f"{axis}_last", [1])], f"{axis}_column")
    cells_f32 = body.add("Cast", [cell_numbers], f"{axis}_cells_f32", to=TensorProto.FLOAT)
    difference = body.add("Sub", [column, cells_f32], f"{axis}_difference")
    distance = body.add("Abs", [difference], f"{axis}_distance")
    share = body.add("Sub", [unit, distance], f"{axis}_share")
    return body.add("Relu", [share], f"{axis}_tent")
