"""Inputs, the one-node model and the reference that tests of cached attention share."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from visionllm_edge.plugins.cached_attention.onnx_function import CONTRIB_DOMAIN, build_function
from visionllm_edge.plugins.cached_attention.reference import cached_attention
from visionllm_edge.plugins.cached_attention.spec import CACHED_ATTENTION
from visionllm_edge.plugins.semantic_op import DOMAIN, OpPort

CAPACITY = 80
Inputs = dict[str, NDArray[Any]]
_ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
}

# (rows already cached, new rows): empty cache, one token, a super-link step of 1 + 4 and of
# 1 + 64 rows, a second prompt, and steps that fill the buffer to its last row.
STEPS = [(0, 1), (0, 13), (0, 80), (13, 1), (13, 5), (13, 65), (7, 20), (75, 5), (79, 1), (15, 65)]


def make_inputs(
    start: int,
    length: int,
    *,
    heads: int,
    kv_heads: int,
    depth: int = 8,
    batch: int = 1,
    capacity: int = CAPACITY,
    cache: type[np.floating[Any]] = np.float32,
) -> Inputs:
    """Random inputs whose unused cache rows hold large finite numbers."""
    rng = np.random.default_rng(start * 100 + length)
    angles = np.arange(capacity)[:, None] / 10 ** (np.arange(depth // 2) / (depth // 2))[None]

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32)

    past_key, past_value = (normal(batch, kv_heads, capacity, depth) for _ in range(2))
    past_key[:, :, start:] = 50.0
    past_value[:, :, start:] = -1000.0
    return {
        "query": normal(batch, length, heads * depth),
        "key": normal(batch, length, kv_heads * depth),
        "value": normal(batch, length, kv_heads * depth),
        "past_key": past_key.astype(cache),
        "past_value": past_value.astype(cache),
        "past_length": np.array([start], dtype=np.int64),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }


def one_node_model(
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    opset: int = 21,
    batch: int | None = None,
    depth: int | None = None,
    combination: int = 0,
    **body: Any,
) -> onnx.ModelProto:
    """A model of one CachedAttention node; sizes that are not given are symbolic.

    `combination` is the one of element types in spec.py; `body` goes to the function's builder.
    """
    ports = CACHED_ATTENTION.inputs + CACHED_ATTENTION.outputs
    types = {
        port.name: _ONNX_TYPES[kind]
        for port, kind in zip(ports, CACHED_ATTENTION.type_combinations[combination], strict=True)
    }
    sizes = {"B": batch, "Dh": depth}

    def shape(port: OpPort) -> list[int | None]:
        return [sizes.get(str(axis)) for axis in port.shape]

    node = helper.make_node(
        CACHED_ATTENTION.name,
        [port.name for port in CACHED_ATTENTION.inputs],
        [port.name for port in CACHED_ATTENTION.outputs],
        domain=DOMAIN,
        num_heads=heads,
        kv_num_heads=kv_heads,
        scale=scale,
        plugin_version="1",
        plugin_namespace="visionllm",
    )
    graph = helper.make_graph(
        [node],
        "one_node",
        [
            helper.make_tensor_value_info(port.name, types[port.name], shape(port))
            for port in CACHED_ATTENTION.inputs
        ],
        [
            helper.make_tensor_value_info(port.name, types[port.name], shape(port))
            for port in CACHED_ATTENTION.outputs
        ],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        functions=[build_function(opset=opset, **body)],
        ir_version=10,
    )
    if body.get("contrib"):
        model.opset_import.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))
    else:
        onnx.checker.check_model(model, full_check=True)
    return model


def reference(inputs: Inputs, **sizes: Any) -> list[NDArray[Any]]:
    return list(cached_attention(*inputs.values(), **sizes))


def run_session(
    session: ort.InferenceSession, inputs: Inputs, *, in_place: bool
) -> list[NDArray[Any]]:
    """Attention and the two buffers; `in_place` binds past and present to one buffer each."""
    if not in_place:
        return [np.asarray(output) for output in session.run(None, inputs)]
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("attention")
    binding.bind_ortvalue_output("present_key", values["past_key"])
    binding.bind_ortvalue_output("present_value", values["past_value"])
    session.run_with_iobinding(binding)
    attention = binding.get_outputs()[0].numpy()
    return [attention, values["past_key"].numpy(), values["past_value"].numpy()]
