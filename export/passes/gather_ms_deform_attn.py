"""MultiScaleDeformableAttention by plain row gathers: no GridSample, so right on every release.

The value is seen as rows [N*S*M, D], one per pixel and head. Every sample reads the four pixels
around it by Gather on axis 0; pixels outside count with weight 0 and read a clamped row. One
batched MatMul per level multiplies the rows by bilinear weight times attention weight and adds
them up: [N, Lq, M, 1, 4P] x [N, Lq, M, 4P, D]. Locations, weights and sums are fp32 whatever the
type of the value; rows are read in the value's own type and widened afterwards. Levels are done
one after the other, which bounds the memory for the rows that were read to one level's.

Refusals (the node stays as it is):
    1. level sizes or starts that are no constants.
    2. batch, pixels, heads or head size of the value unknown, or points unknown.
    3. more rows than fp32 counts exactly (2**24) or an int32 index reaches.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from visionllm_edge.export.passes.new_nodes import Axes, NewNodes

__all__ = ["gather_ms_deform_attn"]

_FLOAT, _INT32 = ir.DataType.FLOAT, ir.DataType.INT32
_MAX_ROWS = 2**24
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # (row, column)


def gather_ms_deform_attn(model: ir.Model, node: ir.Node) -> str | None:
    """Rewrite one node.

    Args:
        model: the graph's model; changed in place unless refused.
        node: a MultiScaleDeformableAttention node of its main graph.

    Returns:
        None if rewritten, else the reason for the refusal.
    """
    value, shapes, starts, locations, weights = node.inputs
    assert value is not None, "all inputs are required"
    assert locations is not None, "all inputs are required"
    assert weights is not None, "all inputs are required"
    sizes, first = _constant(shapes), _constant(starts)
    if sizes is None or first is None:
        return "level sizes are no constants"
    if value.shape is None or not all(isinstance(axis, int) for axis in value.shape):
        return "batch, pixels, heads or head size unknown"
    batch, pixels, heads, depth = (int(axis) for axis in value.shape)  # type: ignore[arg-type]
    if locations.shape is None or not isinstance(locations.shape[4], int):
        return "number of points unknown"
    if batch * pixels * heads > _MAX_ROWS:
        return f"{batch * pixels * heads} rows, at most {_MAX_ROWS} are counted exactly"
    graph = model.graph
    new = NewNodes(graph, f"{node.name}.gather.")
    points, queries = int(locations.shape[4]), locations.shape[1]
    levels = len(sizes)
    grid = (batch, queries, heads, levels, points)

    corner_y = _axis(new, locations, 1, sizes[:, 0], grid, "y")
    corner_x = _axis(new, locations, 0, sizes[:, 1], grid, "x")
    base = np.arange(batch)[:, None, None] * pixels + first[None, None, :]
    base = base * heads + np.arange(heads)[None, :, None]  # [N, M, L]
    row_of_level = new.constant("base", base.reshape(batch, 1, heads, levels, 1).astype(np.int32))
    row_step = new.constant(
        "row_step", (sizes[:, 1] * heads).reshape(1, 1, 1, levels, 1).astype(np.int32)
    )
    column_step = new.constant("column_step", np.array(heads, np.int32))
    rows = [new.like("Mul", [corner_y[i][0], row_step], f"row{i}", grid) for i in range(2)]
    columns = []
    for i in range(2):
        step = new.like("Mul", [corner_x[i][0], column_step], f"column{i}", grid)
        columns.append(new.like("Add", [step, row_of_level], f"column{i}_base", grid))
    attention = _widened(new, weights, grid, "attention")
    rows_weighted = [
        new.like("Mul", [corner_y[i][1], attention], f"row{i}_weight", grid) for i in range(2)
    ]
    index, mix = [], []
    for i, (row, column) in enumerate(_CORNERS):
        index.append(new.like("Add", [rows[row], columns[column]], f"index{i}", grid))
        mix.append(new.like("Mul", [rows_weighted[row], corner_x[column][1]], f"mix{i}", grid))
    corners = 4 * points
    joined = (batch, queries, heads, levels, corners)
    all_index = new.add("Concat", index, "index", dtype=_INT32, shape=joined, axis=-1)
    all_mix = new.add("Concat", mix, "mix", dtype=_FLOAT, shape=joined, axis=-1)

    dtype = value.dtype
    assert dtype is not None, "types are inferred"
    flat_shape = new.constant("flat_shape", np.array([-1, depth], np.int64))
    flat = new.add(
        "Reshape", [value, flat_shape], "flat", dtype=dtype, shape=(batch * pixels * heads, depth)
    )
    summed = (batch, queries, heads, 1, depth)
    total: ir.Value | None = None
    for level in range(levels):
        part = _level(new, flat, all_index, all_mix, level, (batch, queries, heads, corners, depth))
        if total is not None:
            part = new.like("Add", [total, part], f"l{level}_total", summed)
        total = part
    assert total is not None, "at least one level"
    axis = new.constant("unit_axis", np.array([3], np.int64))
    shape = (batch, queries, heads, depth)
    output = new.add("Squeeze", [total, axis], "output_f32", dtype=_FLOAT, shape=shape)
    if dtype != _FLOAT:
        output = new.add("Cast", [output], "output", dtype=dtype, shape=shape, to=int(dtype))
    new.replace(node, output)
    return None


def _constant(value: ir.Value | None) -> NDArray[np.int64] | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy().astype(np.int64)


def _widened(new: NewNodes, value: ir.Value, shape: Axes, name: str) -> ir.Value:
    # A Cast to fp32 says to the precision pass that what follows stays fp32, so it is written even
    # where the value is fp32 already.
    return new.add(
        "Cast",
        [value],
        name,
        dtype=_FLOAT,
        shape=shape,
        to=int(_FLOAT),
    )


def _axis(
    new: NewNodes,
    locations: ir.Value,
    component: int,
    lengths: NDArray[np.int64],
    grid: tuple[int | str | ir.SymbolicDim, ...],
    name: str,
) -> list[tuple[ir.Value, ir.Value]]:
    """Along one axis, the two neighbours of each sample: (clamped index int32, weight fp32)."""
    which = new.constant(f"{name}_component", np.array(component, np.int64))
    picked = new.add(
        "Gather",
        [locations, which],
        f"{name}_picked",
        dtype=locations.dtype or _FLOAT,
        shape=grid,
        axis=5,
    )
    share = _widened(new, picked, grid, f"{name}_share")
    by_level = lengths.reshape(1, 1, 1, -1, 1).astype(np.float32)
    length = new.constant(f"{name}_length", by_level)
    last = new.constant(f"{name}_last", by_level - 1)
    zero, one = (new.constant(f"{name}_{n}", np.array(n, np.float32)) for n in (0, 1))
    half = new.constant(f"{name}_half", np.array(0.5, np.float32))
    scaled = new.like("Mul", [share, length], f"{name}_scaled", grid)
    position = new.like("Sub", [scaled, half], f"{name}_position", grid)
    low = new.like("Floor", [position], f"{name}_low", grid)
    high = new.like("Add", [low, one], f"{name}_high", grid)
    part_high = new.like("Sub", [position, low], f"{name}_part_high", grid)
    part_low = new.like("Sub", [one, part_high], f"{name}_part_low", grid)
    out = []
    for side, place, part in (("low", low, part_low), ("high", high, part_high)):
        above = new.like("Max", [place, zero], f"{name}_{side}_above", grid)
        clamped = new.like("Min", [above, last], f"{name}_{side}_clamped", grid)
        inside = new.add(
            "Equal", [place, clamped], f"{name}_{side}_inside", dtype=ir.DataType.BOOL, shape=grid
        )
        counted = new.add(
            "Cast", [inside], f"{name}_{side}_counted", dtype=_FLOAT, shape=grid, to=int(_FLOAT)
        )
        weight = new.like("Mul", [part, counted], f"{name}_{side}_weight", grid)
        index = new.add(
            "Cast", [clamped], f"{name}_{side}_index", dtype=_INT32, shape=grid, to=int(_INT32)
        )
        out.append((index, weight))
    return out


def _level(
    new: NewNodes,
    flat: ir.Value,
    index: ir.Value,
    mix: ir.Value,
    level: int,
    sizes: tuple[int | str | ir.SymbolicDim, ...],
) -> ir.Value:
    """Rows of one level, weighted and added: [N, Lq, M, 1, D] in fp32."""
    batch, queries, heads, corners, depth = sizes
    at = new.constant(f"l{level}", np.array(level, np.int64))
    row = np.array([level], np.int64)
    samples = (batch, queries, heads, corners)
    own = new.add("Gather", [index, at], f"l{level}_index", dtype=_INT32, shape=samples, axis=3)
    # Axis 3 stays as the row axis of the product.
    part = new.add(
        "Gather",
        [mix, new.constant(f"l{level}_row", row)],
        f"l{level}_mix",
        dtype=_FLOAT,
        shape=(batch, queries, heads, 1, corners),
        axis=3,
    )
    read = new.add(
        "Gather",
        [flat, own],
        f"l{level}_rows",
        dtype=flat.dtype or _FLOAT,
        shape=(*samples, depth),
        axis=0,
    )
    wide = _widened(new, read, (*samples, depth), f"l{level}_rows_f32")
    return new.add(
        "MatMul",
        [part, wide],
        f"l{level}_sum",
        dtype=_FLOAT,
        shape=(batch, queries, heads, 1, depth),
    )
