"""Cached attention: reference, ONNX function and torch form agree at every step length."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from tests.plugins.cached_attention.cases import (
    STEPS,
    make_inputs,
    one_node_model,
    reference,
    run_session,
)
from visionllm_edge.export.ops import cached_attention as torch_op
from visionllm_edge.plugins.cached_attention.spec import CACHED_ATTENTION


@pytest.mark.parametrize("in_place", [False, True], ids=["copied cache", "shared cache"])
@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
def test_function_equals_reference(heads: int, kv_heads: int, opset: int, in_place: bool) -> None:
    scale = 0.3
    model = one_node_model(heads=heads, kv_heads=kv_heads, scale=scale, opset=opset)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for start, length in STEPS:
        inputs = make_inputs(start, length, heads=heads, kv_heads=kv_heads)
        expected = reference(inputs, num_heads=heads, kv_num_heads=kv_heads, scale=scale)
        results = run_session(session, inputs, in_place=in_place)
        for got, want in zip(results, expected, strict=True):
            np.testing.assert_allclose(got, want, atol=3e-6, err_msg=f"{start}+{length}")


@pytest.mark.parametrize("in_place", [False, True], ids=["copied cache", "shared cache"])
@pytest.mark.parametrize("writing", ["scatter_nd", "concat"])
def test_function_with_a_narrower_cache_equals_reference(writing: str, in_place: bool) -> None:
    model = one_node_model(heads=6, kv_heads=2, scale=0.3, combination=3, writing=writing)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for start, length in STEPS:
        inputs = make_inputs(start, length, heads=6, kv_heads=2, cache=np.float16)
        attention, keys, values = reference(inputs, num_heads=6, kv_num_heads=2, scale=0.3)
        results = run_session(session, inputs, in_place=in_place)
        assert keys.dtype == results[1].dtype == np.float16
        # Attention reads what the cache holds, so the rounding is in both; ties may fall apart.
        np.testing.assert_allclose(results[0], attention, atol=1e-3, err_msg=f"{start}+{length}")
        np.testing.assert_allclose(results[1], keys, rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(results[2], values)


@pytest.mark.parametrize("in_place", [False, True], ids=["copied cache", "shared cache"])
def test_function_as_group_query_attention_equals_reference(in_place: bool) -> None:
    model = one_node_model(heads=6, kv_heads=2, scale=0.3, batch=1, depth=16, contrib=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for start, length in STEPS:
        inputs = make_inputs(start, length, heads=6, kv_heads=2, depth=16)
        expected = reference(inputs, num_heads=6, kv_num_heads=2, scale=0.3)
        results = run_session(session, inputs, in_place=in_place)
        end = start + length
        np.testing.assert_allclose(results[0], expected[0], atol=5e-6, err_msg=f"{start}+{length}")
        for got, want in zip(results[1:], expected[1:], strict=True):
            np.testing.assert_allclose(got[:, :, :end], want[:, :, :end], atol=3e-6)


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
    sizes: dict[str, Any] = {"num_heads": 4, "kv_num_heads": 2, "scale": 0.3}
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
