"""Prompt pooling: reference, fold, ONNX function and torch form agree, also for odd regions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (the name every torch reader expects)
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from visionllm_edge.export.ops import grid_sample_prompt_pool as torch_op
from visionllm_edge.export.tracing import trace
from visionllm_edge.plugins.grid_sample_prompt_pool.reference import (
    fold_weights,
    folded,
    grid_sample_prompt_pool,
)
from visionllm_edge.plugins.grid_sample_prompt_pool.spec import GRID_SAMPLE_PROMPT_POOL
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.ports import Port

Arrays = dict[str, NDArray[Any]]

_ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int32": TensorProto.INT32,
}
SIZES = {
    "as trained": ((24, 24), (336, 336)),
    "not square": ((3, 5), (20, 33)),
    "more cells than pixels": ((7, 6), (5, 4)),
    "one cell": ((1, 1), (9, 4)),
    "one pixel": ((4, 3), (1, 1)),
}


def make_inputs(
    grid: tuple[int, int],
    pixels: tuple[int, int],
    *,
    images: int = 2,
    channels: int = 5,
    regions: int = 6,
) -> Arrays:
    """Random maps; regions: speckled, full, empty, one pixel, a box, negative values; ragged."""
    rng = np.random.default_rng(0)
    masks = (rng.random((regions, *pixels)) < 0.3).astype(np.float32)
    for region, mask in enumerate(masks):
        if region == 1:
            mask[:] = 1.0
        elif region == 2:
            mask[:] = 0.0
        elif region == 3:
            mask[:] = 0.0
            mask[-1, -1] = 1e-30
        elif region == 4:
            mask[:] = 0.0
            mask[: pixels[0] // 2 + 1, pixels[1] // 3 :] = 1.0
        elif region == 5:
            mask *= -2.5
    features = rng.standard_normal((images, *grid, channels), dtype=np.float32)
    region_image = rng.integers(0, images, regions).astype(np.int32)
    return {"features": features, "masks": masks, "region_image": region_image}


def one_node_model(opset: int, *, combination: int = 0) -> onnx.ModelProto:
    """A model made of one node plus the function body."""
    types = GRID_SAMPLE_PROMPT_POOL.type_combinations[combination]
    ports = GRID_SAMPLE_PROMPT_POOL.inputs
    node = helper.make_node(
        GRID_SAMPLE_PROMPT_POOL.name,
        [port.name for port in ports],
        ["pooled"],
        domain=DOMAIN,
        plugin_version="1",
        plugin_namespace="visionllm",
    )
    graph = helper.make_graph(
        [node],
        "one_node",
        [
            helper.make_tensor_value_info(port.name, _ONNX_TYPES[kind], [None] * len(port.shape))
            for port, kind in zip(ports, types, strict=False)
        ],
        [helper.make_tensor_value_info("pooled", _ONNX_TYPES[types[-1]], [None] * 2)],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        functions=[GRID_SAMPLE_PROMPT_POOL.onnx_function(opset=opset)],
        ir_version=9,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, inputs: Arrays) -> NDArray[Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    output: NDArray[Any] = session.run(None, inputs)[0]
    return output


def test_reference_by_hand() -> None:
    # A 2x2 map over a 4x4 mask: pixel 2 of an axis lies at 0.5, between the two cells; pixel 1 at
    # 0.25, the centre of cell 0; pixel 0 on the outer edge, where half of the sample is outside.
    features = np.array([1, 2, 3, 4], dtype=np.float32).reshape(1, 2, 2, 1)
    masks = np.zeros((5, 4, 4), dtype=np.float32)
    masks[0, 2, 2] = 1
    masks[1, 1, 1] = 1
    masks[2, 0, 0] = 1
    masks[3, 1, 1] = masks[3, 2, 2] = 1
    result = grid_sample_prompt_pool(features, masks, np.zeros(5, dtype=np.int32))
    assert result[:, 0].tolist() == [2.5, 1.0, 0.25, 1.75, 0.0]


def test_reference_equals_grid_sample_in_torch() -> None:
    inputs = make_inputs(*SIZES["as trained"])
    expected = grid_sample_prompt_pool(*inputs.values())
    maps = torch.from_numpy(inputs["features"]).permute(0, 3, 1, 2)
    for region in (0, 1, 3, 4, 5):
        y, x = np.nonzero(inputs["masks"][region])
        points = torch.from_numpy(np.stack([x, y], axis=-1)).float() / 336
        plane = maps[int(inputs["region_image"][region])][None]
        sampled = F.grid_sample(plane, 2 * points[None, None] - 1, align_corners=False)
        np.testing.assert_allclose(sampled.mean(dim=(0, 2, 3)), expected[region], atol=2e-5)
    assert not expected[2].any()


@pytest.mark.parametrize("size", SIZES)
def test_fold_equals_sampling(size: str) -> None:
    inputs = {name: value.astype(float) for name, value in make_inputs(*SIZES[size]).items()}
    inputs["region_image"] = inputs["region_image"].astype(np.int64)
    expected = grid_sample_prompt_pool(*inputs.values())
    np.testing.assert_allclose(folded(*inputs.values()), expected, atol=1e-14)


def test_weights_of_a_region_inside_the_map_sum_to_one() -> None:
    inputs = make_inputs(*SIZES["as trained"])
    inputs["masks"][:, :7] = inputs["masks"][:, -6:] = 0
    inputs["masks"][:, :, :7] = inputs["masks"][:, :, -6:] = 0
    total = fold_weights(inputs["masks"], 24, 24).sum(axis=(1, 2))
    np.testing.assert_allclose(total, inputs["masks"].any(axis=(1, 2)), atol=1e-12)


@pytest.mark.parametrize("opset", [18, 19, 21])
@pytest.mark.parametrize("size", SIZES)
def test_function_equals_reference(size: str, opset: int) -> None:
    inputs = make_inputs(*SIZES[size])
    expected = grid_sample_prompt_pool(*inputs.values())
    np.testing.assert_allclose(run(one_node_model(opset), inputs), expected, atol=2e-6)


@pytest.mark.parametrize(("images", "regions"), [(1, 0), (1, 1), (3, 4), (5, 2)])
def test_function_takes_any_number_of_regions_and_images(images: int, regions: int) -> None:
    inputs = make_inputs((4, 5), (17, 11), images=images, regions=regions)
    result = run(one_node_model(19), inputs)
    assert result.shape == (regions, 5)
    np.testing.assert_allclose(result, grid_sample_prompt_pool(*inputs.values()), atol=2e-6)


def test_half_precision_features_are_summed_in_fp32() -> None:
    # 112,896 samples of 1.0 added in fp16 would stop at 2,048.
    inputs = make_inputs(*SIZES["as trained"])
    inputs["features"] = inputs["features"].astype(np.float16)
    expected = grid_sample_prompt_pool(
        inputs["features"].astype(np.float64), inputs["masks"], inputs["region_image"]
    )
    result = run(one_node_model(19, combination=1), inputs)
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=2e-7)


def test_an_image_index_out_of_range_gives_zeros() -> None:
    inputs = make_inputs((4, 5), (17, 11))
    inputs["region_image"][:] = [0, 2, 1, -1, 1, 0]
    expected = grid_sample_prompt_pool(*inputs.values())
    assert not expected[[1, 3]].any()
    assert expected[[0, 4, 5]].all()
    np.testing.assert_allclose(run(one_node_model(19), inputs), expected, atol=2e-6)
    found = torch_op(*(torch.from_numpy(value) for value in inputs.values()))
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
def test_torch_form_equals_reference_and_has_gradients(size: str) -> None:
    inputs = make_inputs(*SIZES[size])
    tensors = [torch.from_numpy(value) for value in inputs.values()]
    tensors[0].requires_grad_()
    output = torch_op(*tensors)
    expected = grid_sample_prompt_pool(*inputs.values())
    np.testing.assert_allclose(output.detach(), expected, atol=2e-6)
    output.square().sum().backward()  # type: ignore[no-untyped-call]
    gradient = tensors[0].grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 0


class _Pool(nn.Module):
    def forward(self, features: Tensor, masks: Tensor, region_image: Tensor) -> Tensor:
        return torch_op(features, masks, region_image)


def test_export_writes_one_node_and_the_function_runs_it() -> None:
    inputs = make_inputs((4, 5), (17, 11))
    ports = [
        Port("features", "float32", (2, 4, 5, 5)),
        Port("masks", "float32", ("regions", 17, 11)),
        Port("region_image", "int32", ("regions",)),
    ]
    examples = {name: torch.from_numpy(value) for name, value in inputs.items()}
    pooled = Port("pooled", "float32", ("regions", 5))
    traced = trace(_Pool(), examples, name="pool", inputs=ports, outputs=[pooled], opset=19)
    (node,) = list(traced.graph)
    assert (node.domain, node.op_type) == (DOMAIN, "GridSamplePromptPool")
    attributes = {name: item.as_string() for name, item in node.attributes.items()}
    assert attributes == {"plugin_version": "1", "plugin_namespace": "visionllm"}
    assert len(traced.functions) == 1
    model = ir.serde.serialize_model(traced)
    for regions in (1, 4):
        fewer = {name: value[:regions] for name, value in inputs.items()}
        fewer["features"] = inputs["features"]
        expected = grid_sample_prompt_pool(*fewer.values())
        np.testing.assert_allclose(run(model, fewer), expected, atol=2e-6)


@pytest.mark.parametrize("fault", ["half pixel", "transposed", "count", "neighbour image"])
def test_planted_faults_show(fault: str) -> None:
    inputs = make_inputs(*SIZES["not square"])
    expected = grid_sample_prompt_pool(*inputs.values())
    wrong = dict(inputs)
    if fault == "half pixel":
        wrong["masks"] = np.roll(inputs["masks"], 1, axis=2)
    elif fault == "transposed":
        wrong["masks"] = inputs["masks"].transpose(0, 2, 1).copy()
    elif fault == "count":
        wrong["masks"] = inputs["masks"] * (np.arange(33) % 2 == 0)
    else:
        wrong["region_image"] = 1 - inputs["region_image"]
    difference = np.abs(run(one_node_model(19), wrong) - expected)
    assert float(difference.max()) > 1e-2


def test_function_refuses_an_opset_it_was_not_checked_at() -> None:
    with pytest.raises(ValueError, match=r"opset expected 18\.\.21, got 22"):
        GRID_SAMPLE_PROMPT_POOL.onnx_function(opset=22)


def test_inner_names_are_prefixed_and_unique() -> None:
    function = GRID_SAMPLE_PROMPT_POOL.onnx_function(opset=19)
    names = [name for node in function.node for name in node.output]
    assert len(names) == len(set(names))
    assert all(name.startswith("gspp_") for name in names)
