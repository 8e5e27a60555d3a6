"""Measure what eight bits cost a stage, layer by layer, in one loaded graph.

Every quantised tensor of the graph gets a switch, and every activation's scale becomes an input:
with all switches off the graph is exact, with one on it shows what that tensor costs alone. Layers
that read the same activation (query, key and value projections) are switched together, because
builders merge them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from visionllm_edge.export.graph_session import GraphSession
from visionllm_edge.export.passes.quantize_dequantize import (
    Quantization,
    activation_of,
    quantize_dequantize,
    representable_scale,
    scale_name,
)
from visionllm_edge.runtime.ports import Array

__all__ = ["Probe", "add_switches", "largest_share", "relative_error"]

_FLAGS = "quantised.flags"


def add_switches(model: ir.Model, plan: Quantization) -> dict[str, tuple[str, ...]]:
    """Quantise a graph with a switch per activation and its scale as an input.

    Returns:
        Activation -> the layers that its switch turns on, in the order of the switches.
    """
    graph = model.graph
    nodes = {node.name or "": node for node in graph}
    groups: dict[str, list[str]] = {}
    exact: dict[str, tuple[ir.Value | None, ...]] = {}
    for name in plan.layers:
        node = nodes[name]
        groups.setdefault(activation_of(node).name or "", []).append(name)
        exact[name] = tuple(node.inputs[:2])
    quantize_dequantize(model, plan)
    flags = ir.Value(
        name=_FLAGS, shape=ir.Shape([len(groups)]), type=ir.TensorType(ir.DataType.BOOL)
    )
    graph.inputs.append(flags)
    front: list[ir.Node] = []
    for index, (activation, layers) in enumerate(groups.items()):
        graph.inputs.append(graph.initializers[scale_name(activation)])
        which = ir.Value(
            name=f"{_FLAGS}.{index}.at", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64),
            const_value=ir.tensor(np.array(index, np.int64), name=f"{_FLAGS}.{index}.at"),
        )  # fmt: skip
        graph.register_initializer(which)
        flag = _node("Gather", [flags, which], f"{_FLAGS}.{index}", ir.DataType.BOOL, ir.Shape([]))
        front.append(flag)
        for name in layers:
            node = nodes[name]
            for position in (0, 1):
                rounded, original = node.inputs[position], exact[name][position]
                assert rounded is not None and original is not None, "a layer has both"
                choice = _node(
                    "Where", [flag.outputs[0], rounded, original], f"{name}.switch.{position}",
                    ir.DataType.FLOAT, original.shape,
                )  # fmt: skip
                graph.insert_before(node, choice)
                node.replace_input_with(position, choice.outputs[0])
    if front:
        graph.insert_before(graph[0], front)
    return {activation: tuple(layers) for activation, layers in groups.items()}


def _node(
    op: str, inputs: list[ir.Value], name: str, dtype: ir.DataType, shape: ir.Shape | None
) -> ir.Node:
    node = ir.Node("", op, inputs, num_outputs=1, name=name)
    node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(dtype)
    node.outputs[0].shape = shape
    return node


class Probe:
    """A loaded graph with switches, and some runs to measure it on. Use as a context manager.

    Attributes:
        groups: activation -> the layers that are switched with it.
    """

    def __init__(
        self, model: ir.Model, plan: Quantization, runs: Sequence[Mapping[str, Array]]
    ) -> None:
        """Load it and compute the exact outputs."""
        self.groups = add_switches(model, plan)
        self._precision = plan.precision
        self._session = GraphSession(model)
        self._runs = runs
        self.ranges = dict(plan.ranges)
        self._exact = [self._run(run, ()) for run in runs]

    def __enter__(self) -> Probe:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the session."""
        self._session.__exit__(None, None, None)

    def error(self, activations: Sequence[str]) -> float:
        """Mean relative error of all outputs with these switches on."""
        return float(np.mean([
            relative_error(self._run(run, activations), exact)
            for run, exact in zip(self._runs, self._exact, strict=True)
        ]))  # fmt: skip

    def share(self, activations: Sequence[str], limits: Mapping[str, float]) -> float:
        """Largest error of any output of the first run in units of its limit."""
        return largest_share(self._run(self._runs[0], activations), self._exact[0], limits)

    def _run(self, inputs: Mapping[str, Array], activations: Sequence[str]) -> dict[str, Array]:
        on = set(activations)
        feeds: dict[str, Array] = dict(inputs)
        feeds[_FLAGS] = np.array([name in on for name in self.groups], np.bool_)
        for name in self.groups:
            scale = representable_scale(self.ranges[name], self._precision)
            feeds[scale_name(name)] = scale.reshape(())
        return self._session.run(feeds)


def relative_error(got: Mapping[str, Array], true: Mapping[str, Array]) -> float:
    """Root mean square of the difference over that of the truth, the mean of all outputs."""
    errors = []
    for name, expected in true.items():
        difference = got[name].astype(np.float64) - expected.astype(np.float64)
        size = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))) or 1.0
        errors.append(float(np.sqrt(np.mean(np.square(difference)))) / size)
    return float(np.mean(errors))


def largest_share(
    got: Mapping[str, Array], true: Mapping[str, Array], limits: Mapping[str, float]
) -> float:
    """The worst output's largest error in units of its limit."""
    shares = []
    for name, expected in true.items():
        difference = np.abs(got[name].astype(np.float64) - expected.astype(np.float64))
        shares.append(float(difference.max(initial=0.0)) / max(limits[name], 1e-300))
    return max(shares)
