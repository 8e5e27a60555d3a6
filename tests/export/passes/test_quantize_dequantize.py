"""Eight-bit layers: the exact operators, where each scale lies, numbers, and the refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import helper

from tests.export.passes.graphs import make_model, op_list, run
from visionllm_edge.export.passes.convert_precision import convert_precision
from visionllm_edge.export.passes.infer_types import infer_types
from visionllm_edge.export.passes.keep_list import keep_list
from visionllm_edge.export.passes.quantize_dequantize import (
    Quantization,
    quantize_dequantize,
    representable_scale,
)
from visionllm_edge.runtime.errors import ExportError

RNG = np.random.default_rng(3)
# Channels of very different sizes: one scale for all would lose the small ones.
SIZES = np.logspace(-3, 0, 16, dtype=np.float32)
X = RNG.standard_normal((2, 6, 16)).astype(np.float32)
W = RNG.standard_normal((16, 16)).astype(np.float32) * SIZES
KERNEL = RNG.standard_normal((16, 6, 3)).astype(np.float32) * SIZES[:, None, None]


def _model(
    *nodes: onnx.NodeProto,
    opset: int = 19,
    outputs: Sequence[str] = ("y",),
    kernel: NDArray[np.float32] = KERNEL,
) -> ir.Model:
    model = make_model(
        nodes,
        inputs={"x": [2, 6, 16]},
        outputs=dict.fromkeys(outputs),
        constants={"w": W, "wt": np.ascontiguousarray(W.T), "kernel": kernel,
                   "bias": np.ones(16, np.float32), "two": np.array(2, np.float32),
                   "flat": np.array([12, 16], np.int64)},
        opset=opset,
    )  # fmt: skip
    infer_types(model)
    return model


def _node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=f"{output}.layer", **attributes)


def _plan(*layers: str, precision: str = "int8", **ranges: float) -> Quantization:
    names = tuple(f"{layer}.layer" for layer in layers)
    return Quantization(precision, names, ranges or {"x": float(np.abs(X).max())})


def _rounded(array: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    """Symmetric int8 by hand."""
    others = tuple(i for i in range(array.ndim) if i != axis) if axis is not None else None
    largest = np.abs(array).max(axis=others, keepdims=True)
    scale = (largest / 127).astype(np.float16).astype(np.float32)
    return np.asarray(np.clip(np.rint(array / scale), -127, 127) * scale, np.float32)


def test_a_product_and_its_weight_are_quantised() -> None:
    model = _model(_node("MatMul", "x w", "y"))
    assert quantize_dequantize(model, _plan("y")) == 1
    assert op_list(model) == [
        "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul"
    ]  # fmt: skip
    stored = model.graph.initializers["w.int8.1"]
    assert stored.dtype == ir.DataType.INT8
    assert stored.const_value is not None and stored.const_value.nbytes * 4 == W.nbytes
    assert model.graph.initializers["w.int8.1.scale"].shape == ir.Shape([16])
    assert model.graph.initializers["x.scale"].shape == ir.Shape([])
    (got,) = run(model, {"x": X})
    np.testing.assert_allclose(got, _rounded(X, None) @ _rounded(W, 1), rtol=1e-5, atol=1e-6)
    coarse = X @ _rounded(W, None)  # what one scale for the whole weight would cost
    exact = X @ W
    small = np.s_[..., :8]
    assert np.abs(got - exact)[small].max() < 0.1 * np.abs(coarse - exact)[small].max()


def test_convolution_and_transposed_weight_have_their_own_channel_axis() -> None:
    model = _model(_node("Conv", "x kernel", "y"))
    quantize_dequantize(model, _plan("y"))
    (got,) = run(model, {"x": X})
    by_hand = _model(_node("Conv", "x kernel", "y"), kernel=_rounded(KERNEL, 0))
    (expected,) = run(by_hand, {"x": _rounded(X, None)})
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)

    nodes = [_node("Reshape", "x flat", "rows"), _node("Gemm", "rows wt bias", "y", transB=1)]
    model = _model(*nodes)
    quantize_dequantize(model, _plan("y", rows=float(np.abs(X).max())))
    (got,) = run(model, {"x": X})
    expected = _rounded(X, None).reshape(12, 16) @ _rounded(W, 1) + 1
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_fp8_has_one_scale_per_weight() -> None:
    model = _model(_node("MatMul", "x w", "y"))
    quantize_dequantize(model, _plan("y", precision="fp8"))
    stored = model.graph.initializers["w.fp8"]
    assert stored.dtype == ir.DataType.FLOAT8E4M3FN
    assert model.graph.initializers["w.fp8.scale"].shape == ir.Shape([])
    (got,) = run(model, {"x": X})
    # Three bits behind the point: 1/16 of each number at most, and they add up like a random walk.
    assert 0 < np.abs(got - X @ W).max() < 0.05 * np.abs(X @ W).max()


def test_readers_of_one_activation_share_its_scale_and_others_read_it_exactly() -> None:
    nodes = [
        _node("Mul", "x two", "h"),
        _node("MatMul", "h w", "a"),
        _node("MatMul", "h wt", "b"),
        _node("MatMul", "h w", "c"),
    ]
    model = _model(*nodes, outputs=("a", "b", "c"))
    quantize_dequantize(model, _plan("a", "b", h=float(2 * np.abs(X).max())))
    assert op_list(model).count("QuantizeLinear") == 1
    assert op_list(model).count("DequantizeLinear") == 3
    a, b, c = run(model, {"x": X})
    np.testing.assert_array_equal(c, run(_model(*nodes[:1], nodes[3], outputs=("c",)), {"x": X})[0])
    assert np.abs(a - c).max() > 0 and b.shape == a.shape


def test_half_precision_leaves_the_stored_numbers_alone() -> None:
    model = _model(_node("Mul", "x two", "h"), _node("MatMul", "h w", "y"))
    plan = _plan("y", h=float(2 * np.abs(X).max()))
    quantize_dequantize(model, plan)
    convert_precision(model, "fp16", keep_list(model, ir.DataType.FLOAT16))
    types = {node.op_type: [v.dtype for v in node.inputs if v] for node in model.graph}
    half, eight = ir.DataType.FLOAT16, ir.DataType.INT8
    assert types["QuantizeLinear"] == [half, half, eight]
    assert types["MatMul"] == [half, half]
    (got,) = run(model, {"x": X})
    exact = _model(_node("Mul", "x two", "h"), _node("MatMul", "h w", "y"))
    quantize_dequantize(exact, plan)
    (true,) = run(exact, {"x": X})
    assert np.abs(got - true).max() < 5e-2 * np.abs(true).max()


def test_scales_are_numbers_of_fp16_and_never_zero() -> None:
    scale = representable_scale(np.array([0.0, 1e-9, 0.3, 500.0], np.float32), "int8")
    assert (scale > 0).all()
    np.testing.assert_array_equal(scale, scale.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("plan", "opset", "words"),
    [
        (_plan("y"), 18, "int8 expected opset 19 or newer, got 18"),
        (_plan("nose"), 19, "expected a layer 'nose.layer' with a constant weight"),
        (_plan("y", z=1.0), 19, "range of 'x' expected a positive number, got nan"),
        (_plan("y", x=float("inf")), 19, "range of 'x' expected a positive number, got inf"),
    ],
)
def test_refusals(plan: Quantization, opset: int, words: str) -> None:
    model = _model(_node("MatMul", "x w", "y"), opset=opset)
    with pytest.raises(ExportError, match=words):
        quantize_dequantize(model, plan)
