"""Deformable attention: reference, ONNX function and torch form agree, also at the borders."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from visionllm_edge.export.ops import ms_deform_attn as torch_op
from visionllm_edge.plugins.ms_deform_attn.reference import ms_deform_attn
from visionllm_edge.plugins.ms_deform_attn.spec import MS_DEFORM_ATTN
from visionllm_edge.plugins.semantic_op import DOMAIN

_ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int32": TensorProto.INT32,
}


def make_inputs(
    sizes: list[tuple[int, int]],
    *,
    batch: int = 2,
    queries: int = 5,
    heads: int = 3,
    depth: int = 4,
    points: int = 2,
    spread: float = 0.4,
) -> dict[str, NDArray[Any]]:
    """Random inputs; locations reach `spread` beyond the borders on both sides."""
    rng = np.random.default_rng(0)
    areas = [height * width for height, width in sizes]
    levels = len(sizes)
    weights = rng.random((batch, queries, heads, levels, points), dtype=np.float32)
    return {
        "value": rng.standard_normal((batch, sum(areas), heads, depth), dtype=np.float32),
        "spatial_shapes": np.array(sizes, dtype=np.int32),
        "level_start_index": np.cumsum([0, *areas[:-1]]).astype(np.int32),
        "sampling_locations": rng.uniform(
            -spread, 1 + spread, (batch, queries, heads, levels, points, 2)
        ).astype(np.float32),
        "attention_weights": weights / weights.sum(axis=(3, 4), keepdims=True),
    }


def run_function(
    inputs: dict[str, NDArray[Any]], opset: int, *, combination: int = 0
) -> NDArray[Any]:
    """Run a model made of one node plus the function body in ONNX Runtime."""
    types = MS_DEFORM_ATTN.type_combinations[combination]
    names = [port.name for port in MS_DEFORM_ATTN.inputs]
    node = helper.make_node(
        MS_DEFORM_ATTN.name,
        names,
        ["output"],
        domain=DOMAIN,
        plugin_version="1",
        plugin_namespace="visionllm",
    )
    graph = helper.make_graph(
        [node],
        "one_node",
        [
            helper.make_tensor_value_info(name, _ONNX_TYPES[kind], [None] * inputs[name].ndim)
            for name, kind in zip(names, types, strict=False)
        ],
        [helper.make_tensor_value_info("output", _ONNX_TYPES[types[-1]], [None] * 4)],
    )
    levels = inputs["spatial_shapes"].shape[0]
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        functions=[MS_DEFORM_ATTN.onnx_function(opset=opset, levels=levels)],
        ir_version=9,
    )
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {name: inputs[name].astype(kind) for name, kind in zip(names, types, strict=False)}
    output: NDArray[Any] = session.run(None, feeds)[0]
    return output


def test_reference_by_hand() -> None:
    # One 2x2 level holding 1 2 / 3 4; a sample in the middle sees all four corners equally, one at
    # the centre of the last pixel sees 4, one on the outer corner sees a quarter of pixel 1.
    value = np.array([1, 2, 3, 4], dtype=np.float32).reshape(1, 4, 1, 1)
    locations = np.array([[0.5, 0.5], [0.75, 0.75], [0.0, 0.0], [-0.5, 0.5]], dtype=np.float32)
    result = ms_deform_attn(
        value,
        np.array([[2, 2]]),
        np.array([0]),
        locations.reshape(1, 4, 1, 1, 1, 2),
        np.ones((1, 4, 1, 1, 1), dtype=np.float32),
    )
    assert result.reshape(-1).tolist() == [2.5, 4.0, 0.25, 0.0]


@pytest.mark.parametrize("opset", [18, 19])
@pytest.mark.parametrize(
    "sizes",
    [[(7, 5), (4, 3), (2, 2), (1, 1)], [(6, 6)], [(3, 8), (1, 9)]],
    ids=["four levels", "one level", "two levels"],
)
def test_function_equals_reference(sizes: list[tuple[int, int]], opset: int) -> None:
    inputs = make_inputs(sizes)
    expected = ms_deform_attn(*inputs.values())
    np.testing.assert_allclose(run_function(inputs, opset), expected, atol=2e-6)


@pytest.mark.parametrize(("batch", "queries"), [(1, 1), (1, 5), (3, 17)])
def test_function_at_odd_sizes(batch: int, queries: int) -> None:
    inputs = make_inputs([(3, 5), (2, 3), (1, 2), (1, 1)], batch=batch, queries=queries)
    expected = ms_deform_attn(*inputs.values())
    np.testing.assert_allclose(run_function(inputs, 19), expected, atol=2e-6)


def test_half_precision_values_keep_full_locations() -> None:
    # On a 1 x 1000 level an fp16 coordinate would be off by up to half a pixel.
    inputs = make_inputs([(1, 1000)], spread=0.0)
    inputs["value"] = np.broadcast_to(
        np.linspace(0, 1, 1000, dtype=np.float16).reshape(1, 1000, 1, 1), (2, 1000, 3, 4)
    ).astype(np.float32)
    inputs["attention_weights"] = inputs["attention_weights"].astype(np.float16).astype(np.float32)
    expected = ms_deform_attn(*inputs.values())
    result = run_function(inputs, 19, combination=1)
    assert result.dtype == np.float16
    np.testing.assert_allclose(result.astype(np.float32), expected, atol=6e-4)


def test_torch_form_equals_reference_and_has_gradients() -> None:
    inputs = make_inputs([(7, 5), (4, 3), (2, 2), (1, 1)])
    tensors = [torch.from_numpy(array) for array in inputs.values()]
    for index in (0, 3, 4):
        tensors[index].requires_grad_()
    output = torch_op(*tensors)
    expected = ms_deform_attn(*inputs.values())
    np.testing.assert_allclose(output.detach().numpy(), expected, atol=2e-6)
    output.square().sum().backward()  # type: ignore[no-untyped-call]
    for index in (0, 3, 4):
        gradient = tensors[index].grad
        assert gradient is not None
        assert float(gradient.abs().max()) > 0


def test_function_refuses_the_opset_tensorrt_misreads() -> None:
    with pytest.raises(ValueError, match=r"opset expected 18\.\.19, got 20"):
        MS_DEFORM_ATTN.onnx_function(opset=20, levels=4)


def test_inner_names_are_prefixed_and_unique() -> None:
    function = MS_DEFORM_ATTN.onnx_function(opset=19, levels=4)
    names = [name for node in function.node for name in node.output]
    assert len(names) == len(set(names))
    assert all(name.startswith("msda_") for name in names)
