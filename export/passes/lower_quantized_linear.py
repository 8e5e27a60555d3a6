"""Quantised layers in the forms of the targets: ONNX Runtime's operator, or weights in blocks.

`dequantize_linear` is the portable form: DequantizeLinear of opset 21 on INT4 or INT8 weights
[K,N], one scale per block along axis 0, and MatMul. TensorRT keeps the weights packed; ONNX Runtime
fuses the pair. Weights are repacked when they are written, as bytes: a node holds two numbers a
byte along the inputs, the portable form along the outputs.

Refusals:
    1. inputs or blocks that do not fit together.
    2. weights that are computed rather than stored.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from visionllm_edge.export.passes.new_nodes import NewNodes
from visionllm_edge.plugins.quantized_linear.onnx_function import CONTRIB_DOMAIN
from visionllm_edge.plugins.registry import SEMANTIC_OPS
from visionllm_edge.plugins.semantic_op import DOMAIN

__all__ = ["lower_to_dequantize_linear", "lower_to_matmul_nbits", "set_accuracy_level"]

_OP = "QuantizedLinear"
_BLOCK_AXIS = 0


def lower_to_matmul_nbits(model: ir.Model, node: ir.Node) -> str | None:
    """Let the node's function have ONNX Runtime's MatMulNBits; a kernel of the name still wins.

    Args:
        model: changed in place unless refused.
        node: a QuantizedLinear or QuantizedDense node.

    Returns:
        None if done, else the reason for the refusal.
    """
    if node.op_identifier() not in model.functions:
        return "the model holds no function body for it"
    function = model.functions[node.op_identifier()]
    if CONTRIB_DOMAIN not in function.opset_imports:
        opset = model.graph.opset_imports[""]
        proto = SEMANTIC_OPS[node.op_type].onnx_function(opset=opset, contrib=True)
        model.functions[node.op_identifier()] = ir.serde.deserialize_function(proto)
        model.graph.opset_imports[CONTRIB_DOMAIN] = 1
    return None


def lower_to_dequantize_linear(
    model: ir.Model, node: ir.Node, *, widen: bool = False
) -> str | None:
    """Replace one node by DequantizeLinear and MatMul.

    Args:
        model: changed in place unless refused.
        node: a QuantizedLinear node.
        widen: store a byte for each number also where four bits would do.

    Returns:
        None if replaced, else the reason for the refusal.
    """
    x, weight, scales = node.inputs
    assert x is not None and weight is not None and scales is not None, "all inputs are required"
    sizes = [node.attributes[name].as_int() for name in ("K", "N", "bits", "block_size")]
    k, n, bits, block = sizes
    if k % block or bits not in (4, 8):
        return f"{k} inputs in blocks of {block} with {bits} bits"
    numbers, factors = weight.const_value, scales.const_value
    if numbers is None or factors is None:
        return "its weights are no initializers"
    packed_in_four = bits == 4 and not widen
    dtype = ir.DataType.INT4 if packed_in_four else ir.DataType.INT8

    def repack() -> NDArray[np.generic]:
        stored = numbers.numpy()
        if bits == 8:
            return _int8(stored, k)
        return _packed(stored, k) if packed_in_four else _columns(stored, k)

    new = NewNodes(model.graph, f"{node.name}.")
    packed = _initializer(model.graph, f"{weight.name}.{dtype.name.lower()}", dtype, (k, n), repack)
    factor = _initializer(
        model.graph, f"{scales.name}.columns", ir.DataType.FLOAT, (k // block, n),
        lambda: np.ascontiguousarray(factors.numpy().astype(np.float32).T),
    )  # fmt: skip
    wide = new.add(
        "DequantizeLinear", [packed, factor], "dequantized", dtype=ir.DataType.FLOAT,
        shape=(k, n), axis=_BLOCK_AXIS, block_size=block,
    )  # fmt: skip
    y = node.outputs[0]
    assert y.shape is not None, "a semantic node's output has a shape"
    product = new.add("MatMul", [x, wide], "y", dtype=ir.DataType.FLOAT, shape=list(y.shape))
    new.replace(node, product)
    return None


def set_accuracy_level(model: ir.Model, level: int) -> int:
    """Set what every QuantizedLinear may do with its activations; returns how many there are.

    At level 1 they stay in float32, whatever form the node has: what a gate compares with the
    dequantised weights.
    """
    nodes = [n for n in model.graph.all_nodes() if n.domain == DOMAIN and n.op_type == _OP]
    for node in nodes:
        node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)
    return len(nodes)


def _columns(stored: NDArray[np.uint8], k: int) -> NDArray[np.int8]:
    """[N, K/G, G/2] of q + 8, the even input in the low half -> q [K,N]."""
    rows = stored.reshape(len(stored), k // 2)
    columns = np.empty((k, len(stored)), np.uint8)
    np.bitwise_and(rows.T, 15, out=columns[0::2])
    np.right_shift(rows.T, 4, out=columns[1::2])
    columns -= np.uint8(8)
    return columns.view(np.int8)


def _packed(stored: NDArray[np.uint8], k: int) -> NDArray[np.uint8]:
    """[N, K/G, G/2] of q + 8 -> bytes of q [K,N], the even output in the low half."""
    flat = _columns(stored, k).view(np.uint8).reshape(-1)
    flat &= np.uint8(15)
    out: NDArray[np.uint8] = flat[0::2].copy()
    out[: len(flat) // 2] |= flat[1::2] << 4
    return out


def _int8(stored: NDArray[np.uint8], k: int) -> NDArray[np.int8]:
    """[N, K/G, G] of q + 128 -> q [K,N]."""
    rows = (stored.reshape(len(stored), k) ^ np.uint8(0x80)).view(np.int8)
    return np.ascontiguousarray(rows.T)


def _initializer(
    graph: ir.Graph,
    name: str,
    dtype: ir.DataType,
    shape: tuple[int, int],
    load: Callable[[], NDArray[np.generic]],
) -> ir.Value:
    def read() -> ir.TensorProtocol:
        if dtype == ir.DataType.INT4:
            return ir.PackedTensor(load(), dtype, shape=shape, name=name)
        return ir.Tensor(load(), dtype=dtype, name=name)

    value = ir.Value(
        name=name,
        shape=ir.Shape(shape),
        type=ir.TensorType(dtype),
        const_value=ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(shape), name=name),
    )
    graph.register_initializer(value)
    return value
