"""Where the heads of an attention lie: from rows that hold all heads side by side to its products.

Query, key and value are followed up from the product that reads them, the sums of values down from
theirs, through nodes that move axes and factors (`axis_views.py`). How heads were split, transposed
and joined does not matter as long as it is certain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from visionllm_edge.export.passes.axis_views import (
    VIEW_OPS,
    Part,
    Size,
    View,
    lengths_of,
    own_view,
    parts_of,
    seen_through,
)

__all__ = ["Side", "find_joined", "find_side", "only_reader", "product_of", "readers", "scaled_by"]


@dataclass(frozen=True)
class Side:
    """Query, key or value: rows with all heads side by side, and what led to the product."""

    rows: ir.Value
    own: View  # of `rows` itself
    batch: list[Size]  # lengths of the axes of the product before the last two
    lead: list[Part]  # parts of these axes without the heads
    heads: list[Part]
    count: list[Part]  # rows
    depth: list[Part]
    scale: float
    nodes: list[ir.Node]


def find_side(value: ir.Value | None, *, rows: int) -> Side | None:
    """Climbs from an input of a product to rows that hold all heads side by side.

    To the last ones on the way, so that a factor on them is taken too; but not past rows that
    somebody else reads.
    """
    nodes: list[ir.Node] = []
    scale = 1.0
    side: Side | None = None
    while value is not None:
        side = _placed(value, nodes, scale, rows) or side
        node = value.producer()
        if node is None or (side is not None and only_reader(value) is None):
            break
        scaled = scaled_by(node)
        if scaled is not None:
            value, number = scaled
            scale *= number
        elif node.op_type in VIEW_OPS and not node.domain:
            value = node.inputs[0]
        else:
            break
        nodes.append(node)
    return side


def _placed(value: ir.Value, nodes: Sequence[ir.Node], scale: float, rows: int) -> Side | None:
    """Whether `value` is [..., rows, heads * depth] beside the product that the nodes lead to.

    Args:
        value: what the nodes, the last one first, make an input of the product of.
        nodes: all of them move axes or are factors.
        scale: product of the factors.
        rows: -2 or -1, where the product has the rows.
    """
    own = own_view(value)
    if own is None or len(own) < 2 or value.dtype != ir.DataType.FLOAT:
        return None
    view: View | None = own
    for node in reversed(nodes):
        if view is not None and node.op_type in VIEW_OPS:
            view = seen_through(view, node)
    if view is None or len(view) < 3:
        return None
    count, depth = parts_of([view[rows]]), parts_of([view[-3 - rows]])
    before, lead = parts_of(view[:-2]), parts_of(own[:-2])
    heads = before[len(lead) :]
    if before[: len(lead)] != lead or count != parts_of([own[-2]]):
        return None
    if [*heads, *depth] != parts_of([own[-1]]):
        return None
    batch = lengths_of(view[:-2])
    return Side(value, own, batch, lead, heads, count, depth, scale, list(nodes))


def product_of(parts: Iterable[Part]) -> Size:
    """How many combinations the parts have: the length of an axis made of them."""
    size = Size(1)
    for part in parts:
        size = size * part.size
    return size


def find_joined(
    product: ir.Node, query: Side, value: Side
) -> tuple[ir.Value, list[ir.Node], int] | None:
    """Down from the product to the first value whose rows hold all heads side by side; its rank."""
    axes = iter(parts_of([query.lead, query.heads]))
    axes_before: View = []
    for size in query.batch:
        axis: list[Part] = []
        while product_of(axis) != size:
            part = next(axes, None)
            if part is None:
                return None
            axis.append(part)
        axes_before.append(axis)
    view: View | None = [*axes_before, query.count, value.depth]
    y, nodes = product.outputs[0], list[ir.Node]()
    while view is not None:
        wanted = [*query.heads, *value.depth]
        placed = parts_of(view[:-2]) == query.lead and parts_of([view[-2]]) == query.count
        like_query = len(view) == 3 or lengths_of(view) == lengths_of(query.own)
        if placed and like_query and parts_of([view[-1]]) == wanted:
            return y, nodes, len(view)
        reader = only_reader(y)
        if reader is None or reader.op_type not in VIEW_OPS or reader.inputs[0] is not y:
            return None
        nodes.append(reader)
        view, y = seen_through(view, reader), reader.outputs[0]
    return None


def readers(value: ir.Value) -> list[ir.Node]:
    """Nodes that read more of a value than its shape."""
    return [use.node for use in value.uses() if use.node.op_type != "Shape"]


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one standard operator that reads a value, if nothing else does."""
    found = readers(value)
    if len(found) != 1 or value.is_graph_output() or found[0].domain:
        return None
    return found[0]


def scaled_by(node: ir.Node) -> tuple[ir.Value, float] | None:
    """The value that a node multiplies by a constant, and the constant."""
    if node.op_type not in ("Mul", "Div") or node.domain:
        return None
    for at in (1, 0) if node.op_type == "Mul" else (1,):
        constant, other = node.inputs[at], node.inputs[1 - at]
        if constant is None or other is None:
            return None
        number = ir.convenience.get_const_tensor(constant)
        if number is None or number.size != 1 or len(number.shape) > 1:
            continue
        factor = float(number.numpy().reshape(-1)[0])
        if node.op_type == "Mul":
            return other, factor
        return (other, 1.0 / factor) if factor != 0.0 else None
    return None
