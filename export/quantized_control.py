"""The control of the eight-bit gate: the plainest fake quantisation of the same layers.

Round to nearest, ranges straight from the largest magnitude of the run itself. For TensorRT one
scale per tensor, for weights and activations alike; a compiled stage with calibrated ranges has to
do as well. For the CPU, whose kernels round as they go, one scale for each row of activations and
each output channel of weights; blocks of a row have to do as well.
It is written with ordinary arithmetic (no QuantizeLinear) and its scales are its own, so that a
mistake in the pass or in the calibration is not made here again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from visionllm_edge.export.graph_session import GraphSession
from visionllm_edge.export.passes.new_nodes import NewNodes
from visionllm_edge.export.passes.quantize_dense import dense_layers
from visionllm_edge.export.passes.quantize_dequantize import (
    EIGHT_BITS,
    EightBits,
    channel_axis,
    weight_of,
)
from visionllm_edge.export.passes.quantized_keep_list import quantizable_layers
from visionllm_edge.runtime.ports import Array

__all__ = ["quantized_control", "run_quantized_control"]

_FLOAT = ir.DataType.FLOAT


def run_quantized_control(
    model: ir.Model, inputs: Mapping[str, Array], precision: str, *, by_row: bool = False
) -> dict[str, Array]:
    """Outputs of a canonical graph whose layers are fake-quantised.

    Args:
        model: canonical; changed, and not usable afterwards.
        inputs: of the run.
        precision: `int8` or `fp8`.
        by_row: the layers and the scales of the CPU, see the module.
    """
    with GraphSession(quantized_control(model, precision, by_row=by_row)) as session:
        return session.run(inputs)


def quantized_control(model: ir.Model, precision: str, *, by_row: bool = False) -> ir.Model:
    """The graph of `run_quantized_control`: the one given, changed."""
    bits = EIGHT_BITS[precision]
    layers = dense_layers(model) if by_row else quantizable_layers(model)[0]
    rounded: dict[ir.Value, ir.Value] = {}
    for node in layers:
        for index in (1, 0):
            value = node.inputs[index]
            assert value is not None, "a layer has both"
            if value not in rounded:
                if weight_of(node) is value:
                    axis = channel_axis(node) if by_row else None
                    rounded[value] = _weight(model, value, bits, axis)
                else:
                    rounded[value] = _activation(model, value, bits, by_row=by_row)
            node.replace_input_with(index, rounded[value])
    return model


def _weight(model: ir.Model, value: ir.Value, bits: EightBits, axis: int | None) -> ir.Value:
    """One scale, or one for each output channel along `axis` of a matrix."""
    tensor, name = value.const_value, f"{value.name}.fake"
    assert tensor is not None, "a weight is constant"
    shape = ir.Shape(tensor.shape.numpy())

    def fake() -> ir.TensorProtocol:
        array = tensor.numpy().astype(np.float32)
        others = None if axis is None else 1 - axis
        largest = np.abs(array).max(axis=others, keepdims=axis is not None, initial=0.0)
        scale = np.where(largest > 0, largest / bits.largest, 1.0).astype(np.float32)
        scaled = array / scale
        if bits.dtype == ir.DataType.INT8:
            scaled = np.rint(scaled)
        stored = scaled.astype(bits.dtype.numpy()).astype(np.float32)
        return ir.Tensor(stored * scale, name=name)

    made = ir.Value(
        name=name, shape=shape, type=ir.TensorType(_FLOAT),
        const_value=ir.LazyTensor(fake, dtype=_FLOAT, shape=shape, name=name),
    )  # fmt: skip
    model.graph.register_initializer(made)
    return made


def _activation(model: ir.Model, value: ir.Value, bits: EightBits, *, by_row: bool) -> ir.Value:
    graph = model.graph
    assert value.shape is not None, "a canonical graph has shapes"
    axes = tuple(value.shape)
    new = NewNodes(graph, f"{value.name}.fake.")
    size = new.like("Abs", [value], "abs", axes)
    scales = [*axes[:-1], 1] if by_row else []
    if by_row:
        last = new.constant("last", np.array([-1], np.int64))
        largest = new.add("ReduceMax", [size, last], "max", dtype=_FLOAT, shape=scales, keepdims=1)
    else:
        largest = new.add("ReduceMax", [size], "max", dtype=_FLOAT, shape=scales, keepdims=0)
    levels = new.constant("levels", np.array(bits.largest, np.float32))
    tiny = new.constant("tiny", np.array(1e-30, np.float32))
    exact = new.like("Div", [largest, levels], "exact_scale", scales)
    scale = new.like("Max", [exact, tiny], "scale", scales)
    scaled = new.like("Div", [value, scale], "scaled", axes)
    if bits.dtype == ir.DataType.INT8:
        stored = new.like("Round", [scaled], "stored", axes)
    else:
        narrow = new.add(
            "Cast", [scaled], "narrow", dtype=bits.dtype, shape=axes, to=int(bits.dtype)
        )
        stored = new.add("Cast", [narrow], "stored", dtype=_FLOAT, shape=axes, to=int(_FLOAT))
    out = new.like("Mul", [stored, scale], "value", axes)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], new.nodes)
    else:
        graph.insert_after(producer, new.nodes)
    return out
