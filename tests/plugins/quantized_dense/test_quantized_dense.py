"""The layer with bias and activation: functions and CPU kernels against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.plugins.conftest import PlantFault
from tests.plugins.cpu.nodes import open_session, run
from tests.plugins.quantized_linear.cases import Inputs, make_inputs
from visionllm_edge.plugins.cpu.library import instruction_set
from visionllm_edge.plugins.quantized_dense.onnx_function import build_function
from visionllm_edge.plugins.quantized_dense.reference import activate, quantized_dense
from visionllm_edge.plugins.quantized_dense.spec import ACTIVATIONS, QUANTIZED_DENSE
from visionllm_edge.plugins.quantized_linear.reference import quantized_linear
from visionllm_edge.plugins.semantic_op import DOMAIN

SETS = ["avx512vnni", "avx512", "avx2", "portable"]
# (rows, K, N, bits, block): few rows and many, outputs that fill no vector and several tiles;
# blocks of rows, of which the last has three.
SHAPES = [
    (1, 96, 37, 8, 32),
    (5, 128, 64, 8, 128),
    (7, 640, 130, 8, 128),
    (13, 64, 9, 4, 16),
    (2523, 32, 70, 8, 32),
]


def dense_inputs(rows: int, k: int, n: int, *, bits: int, block: int) -> Inputs:
    """Inputs whose sums reach both ends of an activation."""
    inputs = make_inputs(rows, k, n, bits=bits, block=block)
    sums = quantized_linear(*inputs.values(), bits=bits, block_size=block)
    inputs["x"] *= np.float32(4.0 / np.abs(sums).mean())
    bias = np.random.default_rng(n).standard_normal(n, dtype=np.float32)
    return inputs | {"bias": bias}


def dense_model(
    inputs: Inputs, *, activation: int, level: int, contrib: bool = False, **attributes: int
) -> onnx.ModelProto:
    """One node with its function; the weights are initializers."""
    n, blocks, packed = inputs["weight"].shape
    k = inputs["x"].shape[-1]
    sizes = {
        "K": k,
        "N": n,
        "bits": packed * blocks * 8 // k,
        "block_size": k // blocks,
        "accuracy_level": level,
        "activation": activation,
    } | attributes
    node = helper.make_node(QUANTIZED_DENSE.name, list(inputs), ["y"], domain=DOMAIN, **sizes)
    ends = (("x", [None, None, k]), ("y", [None, None, n]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends)
    constants = [
        onnx.numpy_helper.from_array(array, name) for name, array in inputs.items() if name != "x"
    ]
    domains = [("", 19), (DOMAIN, 1), *([("com.microsoft", 1)] if contrib else [])]
    return helper.make_model(
        helper.make_graph([node], "one_node", [x], [y], constants),
        opset_imports=[helper.make_opsetid(*domain) for domain in domains],
        functions=[build_function(opset=19, contrib=contrib)],
        ir_version=10,
    )


def check(
    library: Path | None,
    inputs: Inputs,
    activation: int,
    *,
    level: int,
    contrib: bool = False,
    true: NDArray[np.float32] | None = None,
) -> None:
    """Equal to the reference (or to `true`) but for the order of float32 additions."""
    _, blocks, packed = inputs["weight"].shape
    k = inputs["x"].shape[-1]
    settings: dict[str, Any] = {
        "bits": packed * blocks * 8 // k,
        "block_size": k // blocks,
        "accuracy_level": level,
    }
    model = dense_model(inputs, activation=activation, level=level, contrib=contrib)
    got = run(model, library, {"x": inputs["x"]})
    if true is None:
        options = settings | {"activation": activation}
        true = quantized_dense(*inputs.values(), **options)
    # The sum of magnitudes is what roundings are in proportion to.
    size = quantized_linear(
        np.abs(inputs["x"]),
        np.full_like(inputs["weight"], 255),
        np.abs(inputs["scales"]),
        **settings,
    )
    np.testing.assert_array_less(np.abs(got - true), 1e-5 * size + 1e-6)


def test_activations_by_hand() -> None:
    z = np.array([-3.0, 0.0, 2.0])
    assert activate(z, ACTIVATIONS["none"]).tolist() == [-3.0, 0.0, 2.0]
    assert activate(z, ACTIVATIONS["relu"]).tolist() == [0.0, 0.0, 2.0]
    # Published values of the normal distribution: Phi(-3) = 0.0013499, Phi(2) = 0.9772499.
    np.testing.assert_allclose(
        activate(z, ACTIVATIONS["gelu"]), [-3 * 0.0013498980, 0, 2 * 0.9772498681], rtol=1e-7
    )
    sigmoid = 1 / (1 + np.exp(-1.702 * z))
    np.testing.assert_allclose(activate(z, ACTIVATIONS["quick_gelu"]), z * sigmoid, rtol=1e-12)


@pytest.mark.parametrize("contrib", [False, True], ids=["standard", "contrib"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_function_equals_reference(name: str, contrib: bool) -> None:
    inputs = dense_inputs(5, 128, 24, bits=8, block=32)
    model = dense_model(inputs, activation=ACTIVATIONS[name], level=1)
    onnx.checker.check_model(model, full_check=True)
    check(None, inputs, ACTIVATIONS[name], level=1, contrib=contrib)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("level", [1, 4])
def test_kernel_equals_reference(
    isa: str, level: int, cpu_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONLLM_EDGE_CPU_ISA", isa)
    if instruction_set(cpu_library) != isa:
        pytest.skip(f"this processor has no {isa}")
    for rows, k, n, bits, block in SHAPES:
        inputs = dense_inputs(rows, k, n, bits=bits, block=block)
        for activation in ACTIVATIONS.values():
            check(cpu_library, inputs, activation, level=level)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_ends_of_an_activation(
    isa: str, name: str, cpu_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With weights of zero the sums are the bias itself: what an activation makes of large numbers.
    monkeypatch.setenv("VISIONLLM_EDGE_CPU_ISA", isa)
    if instruction_set(cpu_library) != isa:
        pytest.skip(f"this processor has no {isa}")
    edges = np.array([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4, 3e38, -3e38, 6.0, -6.0], np.float32)
    bias = np.concatenate([edges, np.linspace(-8, 8, 91, dtype=np.float32)])
    for rows in (1, 6):
        inputs = make_inputs(rows, 32, len(bias), bits=8, block=32) | {"bias": bias}
        inputs["weight"][:] = 128
        model = dense_model(inputs, activation=ACTIVATIONS[name], level=4)
        got = run(model, cpu_library, {"x": inputs["x"]})
        true = activate(bias.astype(np.float64), ACTIVATIONS[name])
        assert np.isfinite(got).all()
        near = np.broadcast_to(2e-7 * np.abs(bias) + 1e-37, got.shape)
        assert (np.abs(got - true) <= near).all()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"activation": 4}, "activation expected 0 to 3, got 4"),
        ({"activation": -1}, "activation expected 0 to 3, got -1"),
        ({"N": 9}, r"input 'bias' expected \[9\], got \[8\]"),
    ],
)
def test_refuses_what_does_not_fit(
    cpu_library: Path, attributes: dict[str, Any], message: str
) -> None:
    inputs = dense_inputs(1, 64, 8, bits=8, block=32)
    options: dict[str, Any] = {"activation": 0, "level": 4} | attributes
    session = open_session(dense_model(inputs, **options), cpu_library)
    with pytest.raises(Exception, match=f"QuantizedDense: .*{message}"):
        session.run(None, {"x": inputs["x"]})


@pytest.mark.parametrize("rows", [2, 7])
def test_the_comparison_sees_a_wrong_bias_or_activation(cpu_library: Path, rows: int) -> None:
    inputs = dense_inputs(rows, 128, 40, bits=8, block=128)
    true = quantized_dense(*inputs.values(), bits=8, block_size=128, accuracy_level=4, activation=1)
    check(cpu_library, inputs, 1, level=4, true=true)
    for wrong, activation in (
        (inputs | {"bias": np.roll(inputs["bias"], 1)}, 1),
        (inputs, ACTIVATIONS["quick_gelu"]),
        (inputs, ACTIVATIONS["relu"]),
    ):
        with pytest.raises(AssertionError):
            check(cpu_library, wrong, activation, level=4, true=true)


def test_the_comparison_sees_a_wrong_kernel(
    plant_fault: PlantFault, monkeypatch: pytest.MonkeyPatch, cpu_library: Path
) -> None:
    monkeypatch.setenv("VISIONLLM_EDGE_CPU_ISA", "avx512vnni")
    if instruction_set(cpu_library) != "avx512vnni":
        pytest.skip("this processor has no avx512vnni")
    inputs = dense_inputs(7, 128, 40, bits=8, block=128)
    check(cpu_library, inputs, 1, level=4)
    library = plant_fault(
        "quantized_linear/cpu_vnni_matrix.h", "target.bias + 16);", "target.bias);"
    )
    with pytest.raises(AssertionError):
        check(library, inputs, 1, level=4)
