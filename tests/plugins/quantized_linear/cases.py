"""Inputs and the one-node model that tests of the quantised linear layer share."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from visionllm_edge.plugins.quantized_linear.spec import QUANTIZED_LINEAR
from visionllm_edge.plugins.semantic_op import DOMAIN

Inputs = dict[str, NDArray[Any]]


def make_inputs(
    rows: int, k: int, n: int, *, bits: int, block: int, batch: int = 1, seed: int = 0
) -> Inputs:
    """Random activations with blocks of very different size; every stored byte can occur."""
    rng = np.random.default_rng([seed, rows, k, n, bits, block])
    x = rng.standard_normal((batch, rows, k), dtype=np.float32)
    x *= np.repeat(10 ** rng.uniform(-2, 2, (batch, rows, k // block)), block, axis=-1)
    return {
        "x": x.astype(np.float32),
        "weight": rng.integers(0, 256, (n, k // block, block * bits // 8), dtype=np.uint8),
        "scales": rng.uniform(-2, 2, (n, k // block)).astype(np.float16),
    }


def one_node_model(
    inputs: Inputs,
    *,
    accuracy_level: int = 4,
    contrib: bool = False,
    opset: int = 21,
    constant: bool = True,
    **attributes: int,
) -> onnx.ModelProto:
    """A model of one node with its function; the weights are initializers or inputs of the graph.

    Attributes follow from the arrays unless given.
    """
    n, blocks, packed = inputs["weight"].shape
    k = inputs["x"].shape[-1]
    sizes = {
        "K": k,
        "N": n,
        "bits": packed * blocks * 8 // k,
        "block_size": k // blocks,
        "accuracy_level": accuracy_level,
    } | attributes
    node = helper.make_node(
        QUANTIZED_LINEAR.name,
        list(inputs),
        ["y"],
        domain=DOMAIN,
        plugin_version="1",
        plugin_namespace="visionllm",
        **sizes,
    )
    weights = {name: array for name, array in inputs.items() if name != "x"}
    free = {"x": inputs["x"]} if constant else inputs
    graph = helper.make_graph(
        [node],
        "one_node",
        [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(array.dtype),
                [None, None, k] if name == "x" else list(array.shape),
            )
            for name, array in free.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None, n])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
        if constant
        else [],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    if contrib:
        opsets.append(helper.make_opsetid("com.microsoft", 1))
    return helper.make_model(
        graph,
        opset_imports=opsets,
        functions=[QUANTIZED_LINEAR.onnx_function(opset=opset, contrib=contrib)],
        ir_version=10,
    )
