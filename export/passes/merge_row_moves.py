"""One gather for everything that only moves rows: windows, rolls, pads, and all of it back.

A value is a map of rows: its last axis is a row, the axes before count them. Pad, Slice, Concat,
Split, Reshape and Transpose that leave the last axis alone give rows of what they read, in another
order, some left out, some added as zeros. So they are run here once, on row numbers, and where the
moves end stands one GatherRows with a constant index.

=====================  =============================================================================
a region               what becomes of it
=====================  =============================================================================
starts                 at a value with known sizes that no move makes
ends                   at a value that something else reads, or that is an output of the graph
costs one copy or none stays as it is: Reshape copies nothing, and a single move is a copy already
=====================  =============================================================================

Only for graphs of ONNX Runtime; a TensorRT builder moves data as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from visionllm_edge.export.passes.append_functions import append_functions
from visionllm_edge.export.passes.drop_dead_code import drop_dead_code
from visionllm_edge.export.passes.new_nodes import NewNodes
from visionllm_edge.plugins.gather_rows.spec import GATHER_ROWS

__all__ = ["merge_row_moves"]

_ABSENT = -1
Rows = NDArray[np.int32]


@dataclass(frozen=True)
class _Moved:
    """A value made of rows of another.

    Attributes:
        source: the value whose rows they are.
        rows: number of the row for every place, in the shape of the value without its last axis.
        copies: operators on the way that copy.
    """

    source: ir.Value
    rows: Rows
    copies: int


def merge_row_moves(model: ir.Model) -> int:
    """Rewrite in place; returns how many gathers were written.

    Args:
        model: in fp32 and typed, sizes known where windows are cut.
    """
    moved: dict[ir.Value, _Moved] = {}
    for node in model.graph:
        for value, found in _outputs(node, moved).items():
            moved[value] = found
    ends = [value for value, found in moved.items() if found.copies > 1 and _ends(value, moved)]
    for value in ends:
        _write(model.graph, value, moved[value])
    if ends:
        drop_dead_code(model)
        append_functions(model)
    return len(ends)


def _ends(value: ir.Value, moved: dict[ir.Value, _Moved]) -> bool:
    """Whether the moves end here. A Reshape behind copies nothing, so it stays as it is."""
    producer = value.producer()
    assert producer is not None, "a move made it"
    return producer.op_type != "Reshape" and not _goes_on(value, moved)


def _goes_on(value: ir.Value, moved: dict[ir.Value, _Moved]) -> bool:
    """Whether only moves that copy read the value, by way of Reshape or not."""
    if value.is_graph_output():
        return False
    for reader in (use.node for use in value.uses()):
        results = [output for output in reader.outputs if output in moved]
        if not results or (reader.op_type == "Reshape" and not _goes_on(results[0], moved)):
            return False
    return True


def _outputs(node: ir.Node, moved: dict[ir.Value, _Moved]) -> dict[ir.Value, _Moved]:
    """What a node that moves rows gives; empty for any other node."""
    if node.domain != "" or node.op_type not in _MOVES:
        return {}
    given = [_seen(value, moved) for value in _data(node)]
    if not given or any(found is None for found in given):
        return {}
    maps = [found for found in given if found is not None]
    source = maps[0].source
    if any(found.source is not source for found in maps):
        return {}
    results = _MOVES[node.op_type](node, [found.rows for found in maps])
    if results is None:
        return {}
    copies = max(found.copies for found in maps) + (node.op_type != "Reshape")
    return {
        output: _Moved(source, rows, copies)
        for output, rows in zip(node.outputs, results, strict=True)
        if _fits(output, rows, source)
    }


def _data(node: ir.Node) -> list[ir.Value]:
    values = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return [value for value in values if value is not None]


def _seen(value: ir.Value, moved: dict[ir.Value, _Moved]) -> _Moved | None:
    """A value as rows of its source: of itself if no move made it."""
    if value in moved:
        return moved[value]
    sizes = _sizes(value)
    if sizes is None or len(sizes) < 2 or value.const_value is not None:
        return None
    count = prod(sizes[:-1])
    return _Moved(value, np.arange(count, dtype=np.int32).reshape(sizes[:-1]), 0)


def _sizes(value: ir.Value) -> tuple[int, ...] | None:
    if value.shape is None or value.dtype != ir.DataType.FLOAT:
        return None
    sizes = [axis for axis in value.shape if isinstance(axis, int)]
    return tuple(sizes) if len(sizes) == len(value.shape) and all(sizes) else None


def _fits(output: ir.Value, rows: Rows, source: ir.Value) -> bool:
    """Whether the graph says the same sizes, with the same last axis as the source."""
    sizes, whole = _sizes(output), _sizes(source)
    return sizes is not None and whole is not None and sizes == (*rows.shape, whole[-1])


def _constant(node: ir.Node, position: int) -> list[int] | None:
    """A constant list of whole numbers that a node reads."""
    if position >= len(node.inputs):
        return None
    value = node.inputs[position]
    if value is None or value.const_value is None:
        return None
    return [int(number) for number in value.const_value.numpy().reshape(-1)]


def _reshape(node: ir.Node, maps: list[Rows]) -> list[Rows] | None:
    sizes = _sizes(node.outputs[0])
    (rows,) = maps
    if sizes is None or prod(sizes[:-1]) != rows.size:
        return None  # the last axis was cut, or joined with another
    return [rows.reshape(sizes[:-1])]


def _transpose(node: ir.Node, maps: list[Rows]) -> list[Rows] | None:
    (rows,) = maps
    order = list(node.attributes.get_ints("perm", []))
    if len(order) != rows.ndim + 1 or order[-1] != rows.ndim:
        return None
    return [rows.transpose(order[:-1])]


def _slice(node: ir.Node, maps: list[Rows]) -> list[Rows] | None:
    (rows,) = maps
    starts, ends = _constant(node, 1), _constant(node, 2)
    if starts is None or ends is None:
        return None
    axes = _constant(node, 3) or list(range(len(starts)))
    steps = _constant(node, 4) or [1] * len(starts)
    cut = [slice(None)] * rows.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = axis % (rows.ndim + 1)
        if place == rows.ndim or step < 1:
            return None
        cut[place] = slice(start, end, step)
    return [rows[tuple(cut)]]


def _split(node: ir.Node, maps: list[Rows]) -> list[Rows] | None:
    (rows,) = maps
    place = node.attributes.get_int("axis", 0) % (rows.ndim + 1)
    sizes = [_sizes(output) for output in node.outputs]
    if place == rows.ndim or any(size is None for size in sizes):
        return None
    ends = np.cumsum([size[place] for size in sizes if size is not None])
    return list(np.split(rows, ends[:-1], axis=place))


def _concat(node: ir.Node, maps: list[Rows]) -> list[Rows] | None:
    ranks = {rows.ndim for rows in maps}
    (rank, *others) = ranks
    place = node.attributes["axis"].as_int() % (rank + 1)
    return None if others or place == rank else [np.concatenate(maps, axis=place)]


def _pad(node: ir.Node, maps: list[Rows]) -> list[Rows] | None:
    (rows,) = maps
    pads = _constant(node, 1)
    filler = node.inputs[2] if len(node.inputs) > 2 else None
    zero = filler is None or (
        filler.const_value is not None and not filler.const_value.numpy().any()
    )
    constant = node.attributes.get_string("mode", "constant") == "constant"
    if pads is None or not zero or not constant or min(pads) < 0:
        return None
    axes = _constant(node, 3) or list(range(rows.ndim + 1))
    if len(pads) != 2 * len(axes):
        return None
    widths = [(0, 0)] * (rows.ndim + 1)
    for position, axis in enumerate(axes):
        widths[axis % (rows.ndim + 1)] = (pads[position], pads[len(axes) + position])
    if widths[-1] != (0, 0):
        return None
    return [np.pad(rows, widths[:-1], constant_values=_ABSENT)]


_MOVES = {
    "Concat": _concat,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}


def _write(graph: ir.Graph, value: ir.Value, found: _Moved) -> None:
    """Let a value be gathered from the source of its rows."""
    producer, sizes, whole = value.producer(), _sizes(value), _sizes(found.source)
    assert producer is not None and sizes is not None and whole is not None, "checked before"
    new = NewNodes(graph, f"{value.name}.rows.")
    columns = whole[-1]
    flat = _shaped(new, found.source, "flat", (prod(whole[:-1]), columns))
    index = new.constant("index", np.ascontiguousarray(found.rows.reshape(-1)))
    gathered = new.semantic(GATHER_ROWS, [flat, index], "gathered", (found.rows.size, columns))
    shaped = _shaped(new, gathered, "map", sizes)
    graph.insert_after(producer, new.nodes)
    ir.convenience.replace_all_uses_with(value, shaped, replace_graph_outputs=True)


def _shaped(new: NewNodes, value: ir.Value, name: str, sizes: tuple[int, ...]) -> ir.Value:
    target = new.constant(f"{name}.shape", np.array(sizes, np.int64))
    return new.add("Reshape", [value, target], name, dtype=ir.DataType.FLOAT, shape=sizes)
