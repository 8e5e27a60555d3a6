"""A model of one semantic node with its ONNX function, run with the CPU library or without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from visionllm_edge.plugins.semantic_op import DOMAIN, SemanticOp

ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}


def one_node_model(
    op: SemanticOp,
    *,
    combination: int = 0,
    opset: int = 19,
    attributes: Mapping[str, Any] | None = None,
    **options: int,
) -> onnx.ModelProto:
    """The node and its function. Half-precision ports are cast from and to fp32 at the ends.

    `attributes` are the node's; `options` go to the function's builder.
    """
    types = op.type_combinations[combination]
    ports = list(zip(op.inputs + op.outputs, types, strict=True))
    inputs, outputs = ports[: len(op.inputs)], ports[len(op.inputs) :]
    nodes, names = [], []
    for port, kind in inputs:
        names.append(port.name)
        if kind in ("float16", "bfloat16"):
            names[-1] = f"{port.name}_narrow"
            nodes.append(helper.make_node("Cast", [port.name], [names[-1]], to=ONNX_TYPES[kind]))
    nodes.append(
        helper.make_node(
            op.name,
            names,
            [f"{port.name}_raw" for port, _ in outputs],
            domain=DOMAIN,
            plugin_version="1",
            plugin_namespace="visionllm",
            **(attributes or {}),
        )
    )
    for port, _ in outputs:
        nodes.append(
            helper.make_node("Cast", [f"{port.name}_raw"], [port.name], to=TensorProto.FLOAT)
        )

    def end(port: Any, kind: str) -> onnx.ValueInfoProto:
        element = ONNX_TYPES[kind] if kind in ("int32", "int64") else TensorProto.FLOAT
        return helper.make_tensor_value_info(port.name, element, [None] * len(port.shape))

    graph = helper.make_graph(
        nodes,
        "one_node",
        [end(port, kind) for port, kind in inputs],
        [end(port, kind) for port, kind in outputs],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        functions=[op.onnx_function(opset=opset, **options)],
        ir_version=9,
    )


def open_session(
    model: onnx.ModelProto, library: Path | None, *, threads: int = 2
) -> ort.InferenceSession:
    """A session with the kernels of `library`, or with the functions."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(
    model: onnx.ModelProto,
    library: Path | None,
    inputs: Mapping[str, NDArray[Any]],
    *,
    threads: int = 2,
) -> NDArray[np.float32]:
    """The first output."""
    output: NDArray[np.float32] = open_session(model, library, threads=threads).run(
        None, dict(inputs)
    )[0]
    return output


def narrow(array: NDArray[Any], kind: str) -> NDArray[np.float32]:
    """What is left of fp32 values after a cast to `kind`."""
    node = helper.make_node("Cast", ["x"], ["y"], to=ONNX_TYPES[kind])
    back = helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * array.ndim)
        for name in ("x", "z")
    ]
    graph = helper.make_graph([node, back], "narrow", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return run(model, None, {"x": array})
