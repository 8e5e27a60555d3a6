"""Write a graph in fp16 or bf16, with a Cast wherever the type changes.

Networks are built strongly typed: what the graph says is what runs, so the choice is made here and
seen in the graph. Every node is in half precision but those of the keep list; a node's float
inputs and outputs share its type. Weights are converted once per type that reads them.

Ends: float inputs and outputs of the graph stay fp32, with a Cast behind or before them; those
named in `half_ends` (the cache) take the half type themselves. Semantic nodes take the type
combination of their specification: the value in half, sampling locations in fp32.

Refusals:
    1. a control-flow operator: its branches would have to be converted with it.
    2. a weight that is not finite in fp16.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from visionllm_edge.export.passes.share_weights import MIN_BYTES
from visionllm_edge.plugins.registry import SEMANTIC_OPS
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.errors import ExportError

__all__ = ["HALF_TYPES", "convert_precision"]

HALF_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""Precision -> element type."""

_FLOAT = ir.DataType.FLOAT
_SPEC = {
    "float32": _FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}
# Resize reads region of interest and scales as fp32 whatever it resizes.
_FP32_INPUTS = {"Resize": (1, 2)}


def convert_precision(
    model: ir.Model, precision: str, keep: Collection[ir.Node], *, half_ends: Collection[str] = ()
) -> int:
    """Convert a typed fp32 graph; returns how many nodes compute in half precision.

    Args:
        model: changed in place.
        precision: a key of `HALF_TYPES`.
        keep: nodes that stay in fp32.
        half_ends: names of graph inputs and outputs that take the half type.

    Raises:
        ExportError: see the refusals. A large weight is read, and refused, when it is written.
    """
    return _Conversion(model, HALF_TYPES[precision], keep, half_ends).run()


class _Conversion:
    def __init__(
        self,
        model: ir.Model,
        half: ir.DataType,
        keep: Collection[ir.Node],
        half_ends: Collection[str],
    ) -> None:
        self.model, self.graph, self.half = model, model.graph, half
        self.keep, self.half_ends = keep, half_ends
        self.made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.was_float: set[ir.Value] = set()

    def run(self) -> int:
        nodes = list(self.graph)
        for node in nodes:
            if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
                   for a in node.attributes.values()):  # fmt: skip
                raise ExportError(
                    f"graph '{self.graph.name}': node '{node.name}' ({node.op_type}) has branches, "
                    "which cannot be converted to half precision. Lower the graph in fp32."
                )
            self.was_float |= {v for v in (*node.inputs, *node.outputs) if v and v.dtype == _FLOAT}
        self.was_float |= {v for v in self.graph.inputs if v.dtype == _FLOAT}
        for value in self.graph.inputs:
            if value.name in self.half_ends:
                value.dtype = self.half
        count = 0
        for node in nodes:
            count += self._convert(node)
        for index, value in enumerate(self.graph.outputs):
            self._end(index, value)
        return count

    def _convert(self, node: ir.Node) -> int:
        inputs, outputs = self._types(node)
        for index, (value, dtype) in enumerate(zip(node.inputs, inputs, strict=True)):
            if value is not None and dtype is not None and value in self.was_float:
                node.replace_input_with(index, self._as(value, dtype))
        for value, dtype in zip(node.outputs, outputs, strict=True):
            if dtype is not None and value in self.was_float:
                value.dtype = dtype
        return int(self.half in outputs)

    def _types(self, node: ir.Node) -> tuple[list[ir.DataType | None], list[ir.DataType | None]]:
        """Wanted element type per input and output; None leaves a value as it is."""
        if node.domain == DOMAIN and node.op_type in SEMANTIC_OPS:
            return self._spec_types(node)
        dtype = _FLOAT if node in self.keep else self.half
        inputs: list[ir.DataType | None] = [dtype] * len(node.inputs)
        outputs: list[ir.DataType | None] = [dtype] * len(node.outputs)
        for index in _FP32_INPUTS.get(node.op_type, ()):
            if index < len(inputs):
                inputs[index] = _FLOAT
        if node.op_type == "Cast" and node.domain == "":
            # A cast reads what is there; what it makes stands in its attribute.
            inputs, outputs = [None], [_FLOAT]
        return inputs, outputs

    def _spec_types(
        self, node: ir.Node
    ) -> tuple[list[ir.DataType | None], list[ir.DataType | None]]:
        op = SEMANTIC_OPS[node.op_type]
        for combination in op.type_combinations:
            types = [_SPEC.get(name) for name in combination]
            if self.half in types:
                return types[: len(op.inputs)], types[len(op.inputs) :]
        raise ExportError(
            f"graph '{self.graph.name}': node '{node.name}' ({node.op_type}) knows no type "
            f"combination with {self.half}."
        )

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self.made:
            constant = value.const_value
            self.made[value, dtype] = (
                self._cast(value, dtype)
                if constant is None or value.is_graph_input()
                else self._weight(value, constant, dtype)
            )
        return self.made[value, dtype]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = f"{value.name}.{dtype.name.lower()}"
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], num_outputs=1)
        cast.name = cast.outputs[0].name = name
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(dtype), value.shape
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, cast)
        elif len(self.graph):
            self.graph.insert_before(self.graph[0], cast)
        else:
            self.graph.append(cast)
        return cast.outputs[0]

    def _weight(self, value: ir.Value, tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.Value:
        """A converted copy, computed when it is read: the whole model never stands in memory."""
        name, graph_name = f"{value.name}.{dtype.name.lower()}", self.graph.name

        def convert() -> ir.TensorProtocol:
            with np.errstate(over="ignore"):
                array = tensor.numpy().astype(dtype.numpy())
            if not np.isfinite(array.astype(np.float32)).all():
                raise ExportError(
                    f"graph '{graph_name}': weight '{value.name}' is not finite in {dtype}. "
                    "Lower this stage in bf16 or fp32."
                )
            return ir.Tensor(array, dtype=dtype, name=name)

        shape = ir.Shape(tensor.shape.numpy())
        # What stays in the graph file is converted now, a weight when it is written to its file.
        small = tensor.nbytes // 2 < MIN_BYTES
        made = ir.Value(
            name=name,
            shape=shape,
            type=ir.TensorType(dtype),
            const_value=convert()
            if small
            else ir.LazyTensor(convert, dtype=dtype, shape=shape, name=name),
        )
        self.graph.register_initializer(made)
        return made

    def _end(self, index: int, value: ir.Value) -> None:
        if value not in self.was_float:
            return
        wanted = self.half if value.name in self.half_ends else _FLOAT
        if value.dtype == wanted:
            return
        name = value.name
        made = self._as(value, wanted)
        value.name = f"{name}.{str(value.dtype).lower()}"
        made.name = name
        self.graph.outputs[index] = made
