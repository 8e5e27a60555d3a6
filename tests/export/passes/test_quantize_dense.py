"""Linear layers in eight bits for a CPU: what is fused, what is kept, and the numbers."""

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
from tests.plugins.cpu.nodes import run as run_optimised
from visionllm_edge.export.lowering import lower
from visionllm_edge.export.passes.infer_types import infer_types
from visionllm_edge.export.passes.quantize_dense import dense_layers, quantize_dense
from visionllm_edge.plugins.quantized_dense.spec import ACTIVATIONS
from visionllm_edge.runtime.targets import find_target

RNG = np.random.default_rng(11)
K, N = 48, 20
W = RNG.standard_normal((K, N)).astype(np.float32)
BIAS = RNG.standard_normal(N).astype(np.float32)
X = RNG.standard_normal((2, 6, K)).astype(np.float32)


def _node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=f"{output}.node", **attributes)


PRODUCT = [_node("MatMul", "x w", "p"), _node("Add", "p bias", "z")]
GELU = [
    _node("Div", "z root", "scaled"),
    _node("Erf", "scaled", "erf"),
    _node("Add", "erf one", "risen"),
    _node("Mul", "half risen", "halved"),
    _node("Mul", "z halved", "y"),
]
GELU_OTHER_ORDER = [
    _node("Mul", "inverse z", "scaled"),
    _node("Erf", "scaled", "erf"),
    _node("Add", "one erf", "risen"),
    _node("Mul", "z risen", "doubled"),
    _node("Mul", "doubled half", "y"),
]
QUICK_GELU = [
    _node("Mul", "z slope", "scaled"),
    _node("Sigmoid", "scaled", "sigmoid"),
    _node("Mul", "z sigmoid", "y"),
]
RELU = [_node("Relu", "z", "y")]


def _model(
    nodes: Sequence[onnx.NodeProto],
    *,
    shape: Sequence[int | str] = (2, 6, K),
    outputs: Sequence[str] = ("y",),
    **constants: NDArray[np.generic],
) -> ir.Model:
    numbers = {"root": 2**0.5, "inverse": 2**-0.5, "one": 1, "half": 0.5, "slope": 1.702}
    model = make_model(
        nodes,
        inputs={"x": list(shape)},
        outputs=dict.fromkeys(outputs),
        constants={"w": W, "wt": np.ascontiguousarray(W.T), "bias": BIAS}
        | {name: np.array(value, np.float32) for name, value in numbers.items()}
        | constants,
        opset=19,
    )  # fmt: skip
    infer_types(model)
    return model


def _activation(model: ir.Model) -> list[int]:
    nodes = [node for node in model.graph if node.op_type == "QuantizedDense"]
    return [node.attributes["activation"].as_int() for node in nodes]


def _near(nodes: Sequence[onnx.NodeProto], x: NDArray[np.float32] = X, **options: Any) -> ir.Model:
    """The rewritten model, whose numbers are those of the plain one within eight bits."""
    shape = options.pop("shape", x.shape)
    plain, model = (_model(nodes, shape=shape, **options) for _ in range(2))
    true = run(plain, {"x": x})
    quantize_dense(model)
    for got, wanted in zip(run(model, {"x": x}), true, strict=True):
        assert got.shape == wanted.shape
        error = np.abs(got - wanted).max() / np.abs(wanted).max()
        assert 0 < error < 0.03
    return model


@pytest.mark.parametrize(
    ("name", "nodes"),
    [("gelu", GELU), ("gelu", GELU_OTHER_ORDER), ("quick_gelu", QUICK_GELU), ("relu", RELU)],
    ids=["gelu", "gelu in another order", "quick_gelu", "relu"],
)
def test_bias_and_activation_become_part_of_the_node(
    name: str, nodes: list[onnx.NodeProto]
) -> None:
    model = _near([*PRODUCT, *nodes])
    assert op_list(model) == ["QuantizedDense"]
    assert _activation(model) == [ACTIVATIONS[name]]
    node = next(iter(model.graph))
    sizes = {name: node.attributes[name].as_int() for name in ("K", "N", "bits", "block_size")}
    assert sizes == {"K": K, "N": N, "bits": 8, "block_size": 16}


def test_nothing_is_fused_that_somebody_else_reads() -> None:
    model = _near([*PRODUCT, *GELU], outputs=("y", "z"))
    assert _activation(model) == [ACTIVATIONS["none"]]
    assert op_list(model) == ["QuantizedDense", "Div", "Erf", "Add", "Mul", "Mul"]
    model = _near([*PRODUCT, *RELU], outputs=("y", "p"))
    assert op_list(model) == ["QuantizedDense", "Add", "Relu"]
    other = [*PRODUCT, *GELU[:-1], _node("Mul", "risen halved", "y")]
    assert op_list(_near(other))[:2] == ["QuantizedDense", "Div"]


@pytest.mark.parametrize("constant", ["root", "one", "half"])
def test_other_numbers_are_no_gelu(constant: str) -> None:
    changed = {constant: np.array(1.3, np.float32)}
    assert _activation(_near([*PRODUCT, *GELU], **changed)) == [ACTIVATIONS["none"]]


def test_a_bias_of_another_shape_stays_outside() -> None:
    wide = RNG.standard_normal((6, N)).astype(np.float32)
    model = _near([_node("MatMul", "x w", "p"), _node("Add", "p wide", "y")], wide=wide)
    assert op_list(model) == ["QuantizedDense", "Add"]


@pytest.mark.parametrize("shape", [(12, K), (2, 3, 2, K), (2, 2, 3, 1, K)], ids=str)
def test_rows_in_any_number_of_axes(shape: tuple[int, ...]) -> None:
    model = _near([*PRODUCT, *RELU], X.reshape(shape))
    assert op_list(model) == ["Reshape", "QuantizedDense", "Reshape"]


def test_axes_of_unknown_length() -> None:
    for shape in (("n", 6, K), ("n", "s", K), ("n", 3, 2, K), ("n", "s", 2, K)):
        x = X.reshape(2, *((6,) if len(shape) == 3 else (3, 2)), K)
        model = _near([*PRODUCT, *RELU], x, shape=shape)
        assert "QuantizedDense" in op_list(model)
    model = _model([*PRODUCT, *RELU], shape=("n", "s", "t", K))
    assert quantize_dense(model) == {"unknown shape": 1, "int8": 0}


def test_a_gemm_is_a_layer_unless_it_scales() -> None:
    rows = X.reshape(12, K)
    for nodes in (
        [_node("Gemm", "x w bias", "y")],
        [_node("Gemm", "x wt bias", "z", transB=1), *RELU],
        [_node("Gemm", "x wt", "y", transB=1)],
    ):
        assert "QuantizedDense" in op_list(_near(nodes, rows))
    model = _model([_node("Gemm", "x w bias", "y", alpha=2.0)], shape=(12, K))
    assert quantize_dense(model) == {"scaled product": 1, "int8": 0}


def test_what_stays_in_float() -> None:
    odd = RNG.standard_normal((K, N)).astype(np.float32)[:40]
    model = _model([_node("MatMul", "x odd", "y")], shape=(2, 6, 40), odd=odd)
    assert quantize_dense(model) == {"inputs": 1, "int8": 0}
    narrow = _model([_node("MatMul", "x narrow", "y")], narrow=W[:, :4])
    assert dense_layers(narrow) == [] and quantize_dense(narrow) == {"narrow": 1, "int8": 0}
    kernel = RNG.standard_normal((32, 32, 3)).astype(np.float32)
    conv = _model([_node("Conv", "x kernel", "y")], shape=(2, 32, 9), kernel=kernel)
    assert quantize_dense(conv) == {"convolution": 1, "int8": 0}


def test_lowering_for_the_cpu_makes_it_and_the_file_runs_without_our_kernels() -> None:
    plain, model = (_model([*PRODUCT, *GELU]) for _ in range(2))
    report = lower(model, find_target("cpu"), precision="int8")
    assert [(entry.op, entry.form) for entry in report] == [("QuantizedDense", "cpu_kernel")]
    # As the runtime loads it: without constant folding MatMulNBits would read its scales out of a
    # Cast, which ONNX Runtime 1.32 gets wrong.
    got = run_optimised(ir.serde.serialize_model(model), None, {"x": X})
    (wanted,) = run(plain, {"x": X})
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()


def test_a_layer_of_another_input_would_be_seen() -> None:
    model = _model([*PRODUCT, *RELU])
    (wanted,) = run(_model([*PRODUCT, *RELU]), {"x": X})
    quantize_dense(model)
    got, *_ = run(model, {"x": np.roll(X, 1, axis=1)})
    assert np.abs(got - wanted).max() > 0.1 * np.abs(wanted).max()
