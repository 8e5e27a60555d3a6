"""Write linear layers in eight bits for a CPU: QuantizedDense with its bias and its activation.

Weights are rounded once, in blocks of inputs with a scale of their own; activations are rounded
when the layer runs, one scale for each row and block. So there is nothing to calibrate, and a row
with large numbers does not coarsen another. TensorRT wants scales that are fixed beforehand; for it
there is `quantize_dequantize`.

A layer is a MatMul or Gemm with a constant weight; a constant bias, and after it GELU, CLIP's quick
GELU or ReLU, become part of the node if nothing else reads what lies between. Which layers stay as
they are is said by `quantized_keep_list`, but for its rule `last` (a scale per row and block fits
an output as it fits anything else), and by more rules:

==============  ================================================================================
rule            layers
==============  ================================================================================
inputs          a number of inputs that no block divides (16, 32, 64 or 128)
convolution     every Conv: the operator is a matrix product
scaled product  a Gemm that also scales, or transposes what it reads
unknown shape   rows that lie in several axes of unknown length
==============  ================================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from visionllm_edge.export.passes.append_functions import append_functions
from visionllm_edge.export.passes.new_nodes import NewNodes
from visionllm_edge.export.passes.quantize_dequantize import weight_of
from visionllm_edge.export.passes.quantized_keep_list import quantizable_layers
from visionllm_edge.export.quantize.matrix import BlockQuantized, quantize_blocks
from visionllm_edge.plugins.quantized_dense.spec import ACTIVATIONS, QUANTIZED_DENSE

__all__ = ["dense_layers", "quantize_dense"]

BITS = 8
_BLOCKS = (128, 64, 32, 16)
_ROUNDED = 4  # accuracy level: activations may become int8
_RANK = 3  # of what the operator reads
_ROOT_2, _QUICK = float(np.sqrt(2.0)), 1.702


@dataclass(frozen=True)
class _Layer:
    """A layer and what is fused into it.

    Attributes:
        node: the product.
        weight: [N,K].
        bias: [N].
        activation: a value of `ACTIVATIONS`.
        output: the value that the fused node makes.
        nodes: that it replaces, the product first.
    """

    node: ir.Node
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    activation: int
    output: ir.Value
    nodes: list[ir.Node]


def quantize_dense(model: ir.Model) -> dict[str, int]:
    """Rewrite in place.

    Args:
        model: in fp32 and typed, before its forms are chosen.

    Returns:
        Rule -> layers that stay in fp32 by it, and under `int8` how many are in eight bits.
    """
    layers, kept = _chosen(model)
    for node in layers:
        _write(model.graph, _fused(node))
    if layers:
        append_functions(model)
    return {**Counter(kept.values()), "int8": len(layers)}


def dense_layers(model: ir.Model) -> list[ir.Node]:
    """The products that `quantize_dense` would write in eight bits."""
    return _chosen(model)[0]


def _chosen(model: ir.Model) -> tuple[list[ir.Node], dict[ir.Node, str]]:
    """Layers to write, and the kept ones with the rule."""
    layers, kept = quantizable_layers(model)
    layers += [node for node, rule in kept.items() if rule == "last"]
    refused = {node: rule for node in layers if (rule := _refusal(node)) is not None}
    others = {node: rule for node, rule in kept.items() if rule != "last"}
    return [node for node in layers if node not in refused], others | refused


def _refusal(node: ir.Node) -> str | None:
    if node.op_type == "Conv":
        return "convolution"
    x, y = node.inputs[0], node.outputs[0]
    if node.op_type == "Gemm":
        plain = all(
            node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta")
        ) and not node.attributes.get_int("transA", 0)
        if not plain:
            return "scaled product"
    weight = weight_of(node)
    assert weight is not None and weight.const_value is not None, "quantizable_layers has checked"
    inputs = weight.const_value.shape.numpy()[1 if _transposed(node) else 0]
    if _block(inputs) is None:
        return "inputs"
    if x is None or x.shape is None or y.shape is None or _unknown(list(y.shape)[1:-1]) > 1:
        return "unknown shape"
    return None


def _unknown(axes: list[int | ir.SymbolicDim]) -> int:
    return sum(not isinstance(axis, int) for axis in axes)


def _transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))


def _block(inputs: int) -> int | None:
    return next((block for block in _BLOCKS if inputs % block == 0), None)


def _fused(node: ir.Node) -> _Layer:
    weight = _constant(node.inputs[1])
    assert weight is not None, "quantizable_layers has checked"
    matrix = weight if _transposed(node) else weight.T
    nodes, value = [node], node.outputs[0]
    bias = _constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is None and (add := _only_reader(value)) is not None and add.op_type == "Add":
        bias = _bias(add, value, len(matrix))
        if bias is not None:
            nodes.append(add)
            value = add.outputs[0]
    activation, used, after = _activation(value)
    return _Layer(
        node=node,
        weight=np.ascontiguousarray(matrix, np.float32),
        bias=np.zeros(len(matrix), np.float32)
        if bias is None
        else np.broadcast_to(bias, len(matrix)).astype(np.float32),
        activation=activation,
        output=after,
        nodes=nodes + used,
    )


def _constant(value: ir.Value | None) -> NDArray[np.float32] | None:
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy().astype(np.float32)


def _bias(add: ir.Node, value: ir.Value, outputs: int) -> NDArray[np.float32] | None:
    other = add.inputs[1] if add.inputs[0] is value else add.inputs[0]
    bias = _constant(other)
    return bias.reshape(-1) if bias is not None and bias.size == bias.shape[-1] == outputs else None


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value once, if nobody else sees it."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _activation(z: ir.Value) -> tuple[int, list[ir.Node], ir.Value]:
    """What is computed of z alone: its number, the nodes that do it, and their result."""
    readers = [use.node for use in z.uses()]
    if not z.is_graph_output():
        if len(readers) == 1 and readers[0].op_type == "Relu":
            return ACTIVATIONS["relu"], readers, readers[0].outputs[0]
        for first in readers:
            for name, match in (("quick_gelu", _quick_gelu), ("gelu", _gelu)):
                nodes = match(first, z)
                if nodes is not None and set(readers) <= set(nodes):
                    return ACTIVATIONS[name], nodes, nodes[-1].outputs[0]
    return ACTIVATIONS["none"], [], z


def _quick_gelu(first: ir.Node, z: ir.Value) -> list[ir.Node] | None:
    """Mul by 1.702, Sigmoid, Mul with z."""
    if first.op_type != "Mul" or not _is_number(_other(first, z), _QUICK):
        return None
    return _chain(first, [("Sigmoid", None), ("Mul", z)])


def _gelu(first: ir.Node, z: ir.Value) -> list[ir.Node] | None:
    """Div by the root of 2 (or Mul), Erf, Add 1, then Mul with z and Mul by a half."""
    scaled = first.op_type == "Div" and first.inputs[0] is z
    root = _ROOT_2 if scaled else 1 / _ROOT_2
    if not (scaled or first.op_type == "Mul") or not _is_number(_other(first, z), root):
        return None
    return (
        _chain(first, [("Erf", None), ("Add", 1.0), ("Mul", 0.5), ("Mul", z)])
        or _chain(first, [("Erf", None), ("Add", 1.0), ("Mul", z), ("Mul", 0.5)])
    )  # fmt: skip


def _chain(
    first: ir.Node, steps: list[tuple[str, ir.Value | float | None]]
) -> list[ir.Node] | None:
    """Nodes that follow each other and that nobody else reads; each with its other operand."""
    nodes, value = [first], first.outputs[0]
    for op, operand in steps:
        node = _only_reader(value)
        if node is None or node.op_type != op:
            return None
        if operand is not None:
            other = _other(node, value)
            fits = other is operand if isinstance(operand, ir.Value) else _is_number(other, operand)
            if not fits:
                return None
        nodes.append(node)
        value = node.outputs[0]
    return nodes


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _is_number(value: ir.Value | None, number: float) -> bool:
    array = _constant(value)
    return array is not None and array.size == 1 and bool(np.isclose(array, number, rtol=1e-6))


def _write(graph: ir.Graph, layer: _Layer) -> None:
    x = layer.node.inputs[0]
    assert x is not None and x.shape is not None and layer.output.shape is not None
    outputs, inputs = layer.weight.shape
    block = _block(inputs)
    assert block is not None, "refused before"
    rounded = quantize_blocks(layer.weight, BITS, block)
    new = NewNodes(graph, f"{layer.node.name}.")
    shape = list(layer.output.shape)
    flat = len(shape) == _RANK
    rows = x if flat else _reshaped(new, x, "rows", [*_leading(x), inputs])
    inner = shape if flat else [*_leading(layer.output), outputs]
    made = _dense(new, layer, rows, rounded, inner)
    y = made if flat else _reshaped(new, made, "shaped", shape)
    ir.convenience.replace_nodes_and_values(
        graph, layer.nodes[-1], layer.nodes, new.nodes, [layer.output], [y]
    )


def _leading(value: ir.Value) -> list[int | ir.SymbolicDim]:
    """The axes before the last as two: the first as it is, the others in one."""
    assert value.shape is not None, "checked before"
    first, *middle = list(value.shape)[:-1]
    sizes = [axis for axis in middle if isinstance(axis, int)]
    whole = len(sizes) == len(middle)
    return [first, int(np.prod(sizes)) if whole else ir.SymbolicDim(None)]


def _reshaped(
    new: NewNodes, value: ir.Value, name: str, shape: Sequence[int | ir.SymbolicDim]
) -> ir.Value:
    """Another shape with the same first axis; at most one other axis is not known."""
    wanted = [0, *(axis if isinstance(axis, int) else -1 for axis in shape[1:])]
    target = new.constant(f"{name}.shape", np.array(wanted, np.int64))
    assert value.dtype is not None, "the graph is typed"
    return new.add("Reshape", [value, target], name, dtype=value.dtype, shape=shape)


def _dense(
    new: NewNodes,
    layer: _Layer,
    x: ir.Value,
    rounded: BlockQuantized,
    shape: Sequence[int | ir.SymbolicDim],
) -> ir.Value:
    base = layer.node.inputs[1]
    label = base.name if base is not None else layer.node.name
    constants = [
        new.constant(f"{label}.int8", rounded.weight),
        new.constant(f"{label}.scales", rounded.scales),
        new.constant(f"{label}.bias", layer.bias),
    ]
    return new.semantic(
        QUANTIZED_DENSE,
        [x, *constants],
        "dense",
        shape,
        K=rounded.columns,
        N=rounded.rows,
        bits=BITS,
        block_size=rounded.block_size,
        accuracy_level=_ROUNDED,
        activation=layer.activation,
    )
