"""Cached attention: reference, ONNX function and torch form agree at every step length."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from visionllm_edge.export.ops import cached_attention as torch_op
from visionllm_edge.plugins.cached_attention.reference import cached_attention
from visionllm_edge.plugins.cached_attention.spec import CACHED_ATTENTION
from visionllm_edge.plugins.semantic_op import DOMAIN

CAPACITY = 80
Inputs = dict[str, NDArray[Any]]

# (rows already cached, new rows): empty cache, one token, a super-link step of 1 + 4 and of
# 1 + 64 rows, a second prompt, and steps that fill the buffer to its last row.
STEPS = [(0, 1), (0, 13), (0, 80), (13, 1), (13, 5), (13, 65), (7, 20), (75, 5), (79, 1), (15, 65)]


def make_inputs(start: int, length: int, *, heads: int, kv_heads: int, depth: int = 8) -> Inputs:
    """Random inputs whose unused cache rows hold large finite numbers."""
    rng = np.random.default_rng(start * 100 + length)
    angles = np.arange(CAPACITY)[:, None] / 10 ** (np.arange(depth // 2) / (depth // 2))[None]

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32)

    past_key, past_value = (normal(1, kv_heads, CAPACITY, depth) for _ in range(2))
    past_key[:, :, start:] = 50.0
    past_value[:, :, start:] = -1000.0
    return {
        "query": normal(1, length, heads * depth),
        "key": normal(1, length, kv_heads * depth),
        "value": normal(1, length, kv_heads * depth),
        "past_key": past_key,
        "past_value": past_value,
        "past_length": np.array([start], dtype=np.int64),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }


def one_node_model(*, heads: int, kv_heads: int, scale: float, opset: int = 21) -> onnx.ModelProto:
    """A model of one CachedAttention node whose sizes are all symbolic."""
    types = {"past_length": TensorProto.INT64}
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
            helper.make_tensor_value_info(
                port.name, types.get(port.name, TensorProto.FLOAT), [None] * len(port.shape)
            )
            for port in CACHED_ATTENTION.inputs
        ],
        [
            helper.make_tensor_value_info(port.name, TensorProto.FLOAT, [None] * len(port.shape))
            for port in CACHED_ATTENTION.outputs
        ],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        functions=[CACHED_ATTENTION.onnx_function(opset=opset)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def reference(inputs: Inputs, **sizes: Any) -> list[NDArray[Any]]:
    return list(cached_attention(*inputs.values(), **sizes))


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
def test_function_equals_reference(heads: int, kv_heads: int, opset: int) -> None:
    scale = 0.3
    model = one_node_model(heads=heads, kv_heads=kv_heads, scale=scale, opset=opset)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for start, length in STEPS:
        inputs = make_inputs(start, length, heads=heads, kv_heads=kv_heads)
        expected = reference(inputs, num_heads=heads, kv_num_heads=kv_heads, scale=scale)
        for got, want in zip(session.run(None, inputs), expected, strict=True):
            np.testing.assert_allclose(got, want, atol=3e-6, err_msg=f"{start}+{length}")


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_torch_form_equals_reference(heads: int, kv_heads: int) -> None:
    for start, length in STEPS:
        inputs = make_inputs(start, length, heads=heads, kv_heads=kv_heads)
        expected = reference(inputs, num_heads=heads, kv_num_heads=kv_heads, scale=8**-0.5)
        tensors = [torch.from_numpy(array) for array in inputs.values()]
        results = torch_op(*tensors, num_heads=heads, kv_num_heads=kv_heads)
        for got, want in zip(results, expected, strict=True):
            np.testing.assert_allclose(got.numpy(), want, atol=3e-6, err_msg=f"{start}+{length}")


def test_append_in_pieces_equals_one_prefill() -> None:
    whole = make_inputs(0, 30, heads=4, kv_heads=2)
    sizes: dict[str, float] = {"num_heads": 4, "kv_num_heads": 2, "scale": 0.3}
    expected = reference(whole, **sizes)
    pieces, keys, values, start = [], whole["past_key"], whole["past_value"], 0
    for length in (9, 1, 5, 15):
        step = {
            **whole,
            **{k: whole[k][:, start : start + length] for k in ("query", "key", "value")},
            "past_key": keys,
            "past_value": values,
            "past_length": np.array([start]),
        }
        attention, keys, values = reference(step, **sizes)
        pieces.append(attention)
        start += length
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected[0], atol=1e-5)
    np.testing.assert_array_equal(keys, expected[1])


def test_overflow_of_the_buffer_is_refused() -> None:
    inputs = make_inputs(78, 3, heads=4, kv_heads=2)
    with pytest.raises(ValueError, match="81 rows do not fit into a cache of 80"):
        reference(inputs, num_heads=4, kv_num_heads=2, scale=0.3)
    with pytest.raises(ValueError, match=r"78 cached \+ 3 new rows exceed the cache's 80 rows"):
        torch_op(
            *(torch.from_numpy(array) for array in inputs.values()), num_heads=4, kv_num_heads=2
        )


def test_inner_names_are_prefixed_and_unique() -> None:
    function = CACHED_ATTENTION.onnx_function(opset=21)
    names = [name for node in function.node for name in node.output]
    assert len(names) == len(set(names))
    assert all(name.startswith("cattn_") for name in names)
