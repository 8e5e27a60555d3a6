"""Write layers in eight bits: QuantizeLinear and DequantizeLinear around what they read.

W8A8 with explicit scales, as strongly typed builders take it: the graph says which layer computes
in eight bits and with which scale, and whatever reads the same tensor beside it reads it exactly.

=========  ==============================================  ======================================
precision  weights                                         activations
=========  ==============================================  ======================================
int8       stored in int8, one scale per output channel    one scale per tensor
fp8        stored in fp8 (E4M3), one scale per tensor      one scale per tensor
=========  ==============================================  ======================================

Zero points are 0: TensorRT takes no other. Scales are numbers of fp16, so that they are the same
in the graph's half-precision form. The graph stays in fp32 here; `convert_precision` comes after.

Refusals:
    1. a layer of the plan that is not in the graph, or has no constant weight.
    2. a scale that is missing, not finite or not positive.
    3. a graph older than opset 19: fp16 scales and fp8 begin there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from visionllm_edge.export.passes.share_weights import MIN_BYTES
from visionllm_edge.runtime.errors import ExportError

__all__ = [
    "EIGHT_BITS",
    "EightBits",
    "Quantization",
    "activation_of",
    "channel_axis",
    "quantize_dequantize",
    "representable_scale",
    "scale_name",
    "weight_of",
]

_MIN_OPSET = 19
_LAYERS = ("Conv", "Gemm", "MatMul")
# The smallest number of fp16 in full precision: scale of a channel that holds nothing.
_TINY = float(np.finfo(np.float16).tiny)


@dataclass(frozen=True)
class EightBits:
    """An eight-bit type.

    Attributes:
        dtype: of the graph.
        largest: largest magnitude that a scaled number takes; of int8 the symmetric range.
        per_channel: whether a weight has a scale per output channel.
    """

    dtype: ir.DataType
    largest: float
    per_channel: bool


EIGHT_BITS: Mapping[str, EightBits] = {
    "int8": EightBits(ir.DataType.INT8, 127.0, True),
    "fp8": EightBits(ir.DataType.FLOAT8E4M3FN, 448.0, False),
}
"""Precision -> its type."""


@dataclass(frozen=True)
class Quantization:
    """What to write in eight bits; made by `visionllm_edge.export.calibration`.

    Attributes:
        precision: a key of `EIGHT_BITS`.
        layers: names of the nodes.
        ranges: name of an activation -> largest magnitude that is represented.
        kept: name of a layer that stays in half precision -> the rule that says so.
        method: how the ranges were chosen.
        report: numbers of the calibration, for people.
    """

    precision: str
    layers: tuple[str, ...]
    ranges: Mapping[str, float]
    kept: Mapping[str, str] = field(default_factory=dict)
    method: str = "max"
    report: Mapping[str, object] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return {
            "precision": self.precision,
            "method": self.method,
            "layers": list(self.layers),
            "kept": dict(self.kept),
            "ranges": dict(self.ranges),
            **self.report,
        }


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant weight of a layer that can be written in eight bits, else None."""
    if node.domain != "" or node.op_type not in _LAYERS:
        return None
    given, weight = node.inputs[0], node.inputs[1]
    if given is None or weight is None or weight.const_value is None or weight.is_graph_input():
        return None
    if given.const_value is not None or given.dtype != ir.DataType.FLOAT:
        return None
    rank = len(weight.const_value.shape)
    return weight if rank == 2 or node.op_type == "Conv" else None


def activation_of(node: ir.Node) -> ir.Value:
    """The computed input of a layer that has a constant weight."""
    value = node.inputs[0]
    assert value is not None, "a layer has an input"
    return value


def channel_axis(node: ir.Node) -> int:
    """Axis of a layer's weight that counts its output channels."""
    if node.op_type == "Conv":
        return 0
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", False)
    return 0 if transposed else 1


def scale_name(activation: str) -> str:
    """Name of the initializer with an activation's scale."""
    return f"{activation}.scale"


def representable_scale(
    largest: NDArray[np.float32] | float, precision: str
) -> NDArray[np.float32]:
    """Scales, exact in fp16, that represent numbers up to `largest`."""
    scale = (np.asarray(largest, np.float32) / EIGHT_BITS[precision].largest).astype(np.float16)
    return np.asarray(np.where(scale > 0, scale, _TINY), np.float32)


def quantize_dequantize(model: ir.Model, plan: Quantization) -> int:
    """Rewrite in place; returns how many layers are in eight bits.

    Args:
        model: in fp32 and typed.
        plan: which layers, with the ranges of their activations.

    Raises:
        ExportError: see the refusals.
    """
    opset = model.graph.opset_imports[""]
    if plan.layers and opset < _MIN_OPSET:
        raise ExportError(
            f"graph '{model.graph.name}': {plan.precision} expected opset {_MIN_OPSET} or newer, "
            f"got {opset}. Build this stage in fp16."
        )
    writer = _Writer(model.graph, plan)
    nodes = {node.name: node for node in model.graph}
    for name in plan.layers:
        node = nodes.get(name)
        weight = None if node is None else weight_of(node)
        if node is None or weight is None:
            raise ExportError(
                f"graph '{model.graph.name}': expected a layer '{name}' with a constant weight, "
                "got none. The calibration is of another graph: calibrate again."
            )
        node.replace_input_with(1, writer.weight(node, weight))
        node.replace_input_with(0, writer.activation(activation_of(node)))
    return len(plan.layers)


class _Writer:
    def __init__(self, graph: ir.Graph, plan: Quantization) -> None:
        self._graph, self._plan = graph, plan
        self._bits = EIGHT_BITS[plan.precision]
        self._activations: dict[ir.Value, ir.Value] = {}
        self._weights: dict[tuple[ir.Value, int], ir.Value] = {}

    def activation(self, value: ir.Value) -> ir.Value:
        if value not in self._activations:
            name = value.name or ""
            largest = self._plan.ranges.get(name, float("nan"))
            if not (np.isfinite(largest) and largest >= 0):
                raise ExportError(
                    f"graph '{self._graph.name}': range of '{name}' expected a positive number, "
                    f"got {largest}. Calibrate again with pictures that the model understands."
                )
            scale = self._constant(
                scale_name(name), representable_scale(largest, self._plan.precision)
            )
            zero = self._zero()
            narrow = self._node("QuantizeLinear", [value, scale, zero], f"{name}.q", value)
            wide = self._node("DequantizeLinear", [narrow.outputs[0], scale, zero], f"{name}.dq",
                              value)  # fmt: skip
            self._place(value, [narrow, wide])
            self._activations[value] = wide.outputs[0]
        return self._activations[value]

    def weight(self, node: ir.Node, value: ir.Value) -> ir.Value:
        axis = channel_axis(node) if self._bits.per_channel else -1
        if (value, axis) not in self._weights:
            tensor = value.const_value
            assert tensor is not None, "a weight is constant"
            name = f"{value.name}.{self._plan.precision}" + (f".{axis}" if axis > 0 else "")
            array = np.abs(tensor.numpy().astype(np.float32))
            others = tuple(i for i in range(array.ndim) if i != axis)
            scale = representable_scale(array.max(axis=others), self._plan.precision)
            stored = self._stored(name, tensor, scale, axis)
            wide = self._node(
                "DequantizeLinear", [stored, self._constant(f"{name}.scale", scale)],
                f"{name}.dq", value, axis=axis if axis >= 0 else None,
            )  # fmt: skip
            self._place(None, [wide])
            self._weights[value, axis] = wide.outputs[0]
        return self._weights[value, axis]

    def _stored(
        self, name: str, tensor: ir.TensorProtocol, scale: NDArray[np.float32], axis: int
    ) -> ir.Value:
        """The weight in eight bits; a large one is computed when it is written to its file."""
        bits = self._bits

        def convert() -> ir.TensorProtocol:
            array = tensor.numpy().astype(np.float32)
            by_channel = [-1 if i == axis else 1 for i in range(array.ndim)]
            scaled = array / (scale.reshape(by_channel) if axis >= 0 else scale)
            scaled = np.clip(scaled, -bits.largest, bits.largest)
            if bits.dtype == ir.DataType.INT8:
                scaled = np.rint(scaled)
            return ir.Tensor(scaled.astype(bits.dtype.numpy()), dtype=bits.dtype, name=name)

        shape = ir.Shape(tensor.shape.numpy())
        small = tensor.size < MIN_BYTES
        value = ir.Value(
            name=name,
            shape=shape,
            type=ir.TensorType(bits.dtype),
            const_value=convert()
            if small
            else ir.LazyTensor(convert, dtype=bits.dtype, shape=shape, name=name),
        )
        self._graph.register_initializer(value)
        return value

    def _zero(self) -> ir.Value:
        name = f"zero.{self._plan.precision}"
        if name not in self._graph.initializers:
            zero = np.zeros((), np.float32).astype(self._bits.dtype.numpy())
            self._register(name, ir.Tensor(zero, dtype=self._bits.dtype, name=name))
        return self._graph.initializers[name]

    def _constant(self, name: str, array: NDArray[np.float32]) -> ir.Value:
        return self._register(name, ir.Tensor(np.asarray(array, np.float32), name=name))

    def _register(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(
            name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )  # fmt: skip
        self._graph.register_initializer(value)
        return value

    def _node(
        self, op: str, inputs: list[ir.Value], name: str, like: ir.Value, axis: int | None = None
    ) -> ir.Node:
        attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
        node = ir.Node("", op, inputs, attributes, num_outputs=1, name=name)
        output = node.outputs[0]
        output.name = name
        narrow = op == "QuantizeLinear"
        output.type = ir.TensorType(self._bits.dtype if narrow else ir.DataType.FLOAT)
        output.shape = like.shape
        return node

    def _place(self, after: ir.Value | None, nodes: list[ir.Node]) -> None:
        producer = None if after is None else after.producer()
        if producer is not None:
            self._graph.insert_after(producer, nodes)
        else:
            self._graph.insert_before(self._graph[0], nodes)
