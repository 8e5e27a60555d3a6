"""Attention in standard operators -> one UnmaskedAttention, for backends with our CPU kernel.

Around a Softmax over the last axis, it looks for

    scores = query heads @ key heads^T, times constants, plus constants
    y      = Softmax(scores) @ value heads, heads joined again

and puts one node between the values whose rows still hold all heads side by side and the one whose
rows do so again. How heads were split, transposed and joined does not matter: the views say where
every axis went (`axis_views.py`), through shapes that are computed in the graph too. Biases become
one constant, the different ones once each, with an index that says which entry of the batch has
which. Constants on queries, keys and scores become the scale.

What stays as it is:
    1. a Softmax over another axis, of another type than fp32, or with a bias that is computed;
    2. heads whose way back to a value [..., rows, heads * depth] is not certain, or differs
       between query, key and value;
    3. intermediate values that something else reads, or that leave the graph;
    4. keys so many and long that a head of them outgrows the near caches: there the blocked
       products of ONNX Runtime are better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from visionllm_edge.export.passes.append_functions import append_functions
from visionllm_edge.export.passes.attention_heads import (
    Side,
    find_joined,
    find_side,
    only_reader,
    product_of,
    readers,
    scaled_by,
)
from visionllm_edge.export.passes.axis_views import Size
from visionllm_edge.export.passes.drop_dead_code import drop_dead_code
from visionllm_edge.export.passes.new_nodes import NewNodes
from visionllm_edge.plugins.unmasked_attention.spec import UNMASKED_ATTENTION

__all__ = ["MOST_NUMBERS", "fuse_attention"]

MOST_NUMBERS = 1 << 19
"""Of one head's keys: 2 MiB. Above that every block of rows would read them from far away."""

_EXACT, _ROUNDED = 1, 3  # accuracy levels

_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Match:
    query: Side
    key: Side
    value: Side
    scale: float
    bias: _Floats  # [N, J, T, U]
    bias_index: NDArray[np.int64]
    y: ir.Value  # what the new node replaces
    rank: int  # of y: 3, or that of the query


def fuse_attention(model: ir.Model, *, rounded: bool = False) -> int:
    """Fuse every attention that is certain; returns how many.

    Args:
        model: its main graph is changed in place, and gets the operator's function.
        rounded: what is multiplied may become bfloat16.
    """
    fused = 0
    for node in [node for node in model.graph if node.op_type == "Softmax" and not node.domain]:
        match = _matched(node)
        if match is not None:
            _write(model.graph, node, match, _ROUNDED if rounded else _EXACT)
            fused += 1
    if fused:
        append_functions(model)
        drop_dead_code(model)
    return fused


def _matched(softmax: ir.Node) -> _Match | None:
    scores, weights = softmax.inputs[0], softmax.outputs[0]
    product, above = only_reader(weights), _scored(scores)
    if product is None or product.op_type != "MatMul" or above is None:
        return None
    first, scale, biases, between = above
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    if product.inputs[0] is not weights or product.inputs[1] is weights:
        return None
    query = find_side(first.inputs[0], rows=-2)
    key = find_side(first.inputs[1], rows=-1)
    value = find_side(product.inputs[1], rows=-2)
    if query is None or key is None or value is None or value.scale != 1.0:
        return None
    if axis not in (-1, len(query.batch) + 1) or not _agree(query, key, value):
        return None
    bias = _bias(query, key, biases)
    joined = find_joined(product, query, value)
    if bias is None or joined is None:
        return None
    y, after, rank = joined
    nodes = [softmax, first, product, *between, *query.nodes, *key.nodes, *value.nodes, *after]
    if _read_elsewhere(nodes, y):
        return None
    return _Match(query, key, value, scale * query.scale * key.scale, *bias, y, rank)


def _scored(
    value: ir.Value | None,
) -> tuple[ir.Node, float, list[tuple[float, _Floats]], list[ir.Node]] | None:
    """Up from the scores: their MatMul, factor, biases with a factor each, nodes on the way."""
    factor, biases, nodes = 1.0, list[tuple[float, _Floats]](), list[ir.Node]()
    while value is not None and (node := value.producer()) is not None and not node.domain:
        if node.op_type == "MatMul":
            return node, factor, biases, nodes
        nodes.append(node)
        scaled = scaled_by(node)
        if scaled is not None:
            value, number = scaled
            factor *= number
            continue
        if node.op_type != "Add":
            return None
        constants = [_constant(given) for given in node.inputs]
        at = 0 if constants[0] is not None else 1
        constant = constants[at]
        if constant is None or constant.dtype != np.float32:
            return None
        biases.append((factor, constant.astype(np.float32, copy=False)))
        value = node.inputs[1 - at]
    return None


def _constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """A constant, or what a few operators make of constants."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return tensor.numpy()
    node = None if value is None else value.producer()
    if node is None or node.domain or node.op_type not in ("Add", "Unsqueeze"):
        return None
    left, right = (_constant(given) for given in node.inputs)
    if left is None or right is None:
        return None
    if node.op_type == "Unsqueeze":
        return np.expand_dims(left, tuple(int(axis) for axis in right.reshape(-1)))
    both: NDArray[np.generic] = np.add(left, right)
    return both


def _agree(query: Side, key: Side, value: Side) -> bool:
    """The same batch, heads and depth; whole numbers where the operator needs them."""
    heads, depth, keys = product_of(query.heads), product_of(query.depth), product_of(key.count)
    if heads.symbols or depth.symbols or keys != product_of(value.count):
        return False
    if not keys.symbols and keys.number * depth.number > MOST_NUMBERS:
        return False
    for side in (query, key, value):
        if side.batch != query.batch or product_of(side.heads) != heads:
            return False
        if product_of(side.depth) != depth:
            return False
        # Other ranks than 3 are reshaped, which must know the last two axes.
        if len(side.own) != 3 and product_of(side.count).symbols:
            return False
    return True


def _bias(
    query: Side, key: Side, biases: Sequence[tuple[float, _Floats]]
) -> tuple[_Floats, NDArray[np.int64]] | None:
    """One bias for each kind of batch entry, [N, J, T, U], and which entry has which, [M]."""
    if not biases:
        return np.zeros((1, 1, 1, 1), np.float32), np.zeros(1, np.int64)
    rows, keys, heads = (product_of(p) for p in (query.count, key.count, query.heads))
    rank = len(query.batch) + 2
    total = np.zeros((1,) * rank, np.float64)
    for factor, constant in biases:
        if constant.ndim > rank:
            return None
        total = total + factor * constant.astype(np.float64)
    sizes = [*query.batch, rows, keys]
    for length, size in zip(total.shape, sizes, strict=True):
        if length != 1 and size != Size(length):
            return None
    if rows.symbols or keys.symbols:
        return None
    # A bias that knows the batch must see the heads as the last axis of it.
    if max(total.shape[:-2]) != 1 and query.batch[-1] != heads:
        return None
    outer = next((i for i, length in enumerate(total.shape[:-3]) if length != 1), rank - 3)
    inner = [size.number for size in query.batch[outer:-1]]
    if any(size.symbols for size in query.batch[outer:-1]):
        return None
    shape = (*inner, total.shape[-3], rows.number, keys.number)
    full = np.broadcast_to(total.reshape(total.shape[outer:]), shape).astype(np.float32)
    full = full.reshape(-1, *shape[-3:])
    kinds: dict[bytes, int] = {}
    index = [kinds.setdefault(entry.tobytes(), len(kinds)) for entry in full]
    different = full[[index.index(kind) for kind in range(len(kinds))]]
    if len(kinds) == 1:
        index = [0]
    return different, np.array(index, np.int64)


def _read_elsewhere(nodes: Sequence[ir.Node], y: ir.Value) -> bool:
    """Whether a value between the nodes leaves them."""
    own = set(nodes)
    return any(
        value.is_graph_output() or not own.issuperset(readers(value))
        for node in nodes
        for value in node.outputs
        if value is not y
    )


def _write(graph: ir.Graph, softmax: ir.Node, match: _Match, accuracy_level: int) -> None:
    new = NewNodes(graph, f"{softmax.name or match.y.name}.fused.")
    heads, depth = product_of(match.query.heads).number, product_of(match.query.depth).number
    inputs = [
        _three_axes(new, side, name, heads * depth)
        for side, name in ((match.query, "query"), (match.key, "key"), (match.value, "value"))
    ]
    inputs += [new.constant("bias", match.bias), new.constant("bias_index", match.bias_index)]
    shape = inputs[0].shape
    assert shape is not None, "its axes were followed"
    y = new.semantic(
        UNMASKED_ATTENTION,
        inputs,
        "attention",
        list(shape),
        num_heads=heads,
        scale=float(match.scale),
        accuracy_level=accuracy_level,
    )
    last = match.y.producer()
    assert last is not None, "heads were joined by a node"
    if match.rank != 3:
        rows, whole = match.query.rows, match.query.rows.shape
        assert whole is not None, "its axes were followed"
        target = new.add("Shape", [rows], "y_shape", dtype=ir.DataType.INT64, shape=[match.rank])
        y = new.add("Reshape", [y, target], "y", dtype=ir.DataType.FLOAT, shape=list(whole))
    new.replace(last, y)


def _three_axes(new: NewNodes, side: Side, name: str, width: int) -> ir.Value:
    if len(side.own) == 3:
        return side.rows
    count = product_of(side.count).number
    target = new.constant(f"{name}_shape", np.array([-1, count, width], np.int64))
    lead = product_of(side.lead)
    shape = [ir.SymbolicDim(None) if lead.symbols else lead.number, count, width]
    return new.add("Reshape", [side.rows, target], name, dtype=ir.DataType.FLOAT, shape=shape)
