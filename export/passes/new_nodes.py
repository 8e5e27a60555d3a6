"""A small builder for passes that write nodes: names, types and constants in one place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from visionllm_edge.plugins.semantic_op import (
    DOMAIN,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    SemanticOp,
)

__all__ = ["Axes", "NewNodes"]

Axes = Sequence[int | str | ir.SymbolicDim]
"""A shape whose axes may be unknown."""


class NewNodes:
    """Nodes that will replace one node.

    Args:
        graph: where they go.
        prefix: written in front of every name, so that nothing outside is met.
    """

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        """Start without nodes."""
        self.nodes: list[ir.Node] = []
        self._graph = graph
        self._prefix = prefix

    def add(
        self,
        op: str,
        inputs: Sequence[ir.Value],
        name: str,
        *,
        dtype: ir.DataType,
        shape: Axes,
        domain: str = "",
        **attributes: int | float | Sequence[int] | str,
    ) -> ir.Value:
        """Append a node with one output, of the default domain if not told; returns that output."""
        node = ir.Node(
            domain,
            op,
            list(inputs),
            [_attribute(key, value) for key, value in attributes.items()],
            num_outputs=1,
            name=f"{self._prefix}{name}",
        )
        output = node.outputs[0]
        output.name = f"{self._prefix}{name}"
        output.type = ir.TensorType(dtype)
        output.shape = ir.Shape(list(shape))
        self.nodes.append(node)
        return output

    def semantic(
        self,
        op: SemanticOp,
        inputs: Sequence[ir.Value],
        name: str,
        shape: Axes,
        **attributes: int | float,
    ) -> ir.Value:
        """Append a node of an operator of ours with one float32 output; returns that output."""
        return self.add(
            op.name,
            inputs,
            name,
            dtype=ir.DataType.FLOAT,
            shape=shape,
            domain=DOMAIN,
            plugin_version=PLUGIN_VERSION,
            plugin_namespace=PLUGIN_NAMESPACE,
            **attributes,
        )

    def like(self, op: str, inputs: Sequence[ir.Value], name: str, shape: Axes) -> ir.Value:
        """Append an elementwise node in the type of its first input."""
        dtype = inputs[0].dtype
        assert dtype is not None, "made here, so it has a type"
        return self.add(op, inputs, name, dtype=dtype, shape=shape)

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """An initializer."""
        full = f"{self._prefix}{name}"
        tensor = ir.tensor(array, name=full)
        value = ir.Value(
            name=full,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value

    def replace(self, node: ir.Node, output: ir.Value) -> None:
        """Put the nodes in the place of one with a single output."""
        ir.convenience.replace_nodes_and_values(
            self._graph, node, [node], self.nodes, node.outputs, [output]
        )


def _attribute(name: str, value: int | float | Sequence[int] | str) -> ir.Attr:
    if isinstance(value, str):
        return ir.AttrString(name, value)
    if isinstance(value, float):
        return ir.AttrFloat32(name, value)
    return ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrInt64s(name, value)
