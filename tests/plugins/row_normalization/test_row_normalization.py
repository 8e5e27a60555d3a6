"""The normalisation: function and CPU kernel against the reference, on every instruction set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from tests.plugins.conftest import PlantFault
from tests.plugins.cpu.nodes import one_node_model, open_session, run
from visionllm_edge.plugins.cpu.library import instruction_set
from visionllm_edge.plugins.row_normalization.reference import row_normalization
from visionllm_edge.plugins.row_normalization.spec import ROW_NORMALIZATION

# In standard deviations of a row. The kernel rounds its mean, its gain and its result once each;
# the function adds up some hundred numbers at a time in fp32.
KERNEL_LIMIT, FUNCTION_LIMIT = 2e-6, 1.5e-5
EPSILON = 1e-3
SHAPES = [(1, 2, 1), (2, 3, 7), (1, 1, 64), (2, 2, 2049), (1, 3, 4100), (3, 0, 5), (1, 2, 0)]
# A group norm at stride 8 of 800x1088, of which 36% are picture.
PADDED = (1, 3, 108_800)
PARTS = {7: 7, 64: 8, 2049: 3, 4100: 50, 108_800: 320}


def _model(length: int) -> onnx.ModelProto:
    model = one_node_model(ROW_NORMALIZATION)
    (node,) = (node for node in model.graph.node if node.op_type == ROW_NORMALIZATION.name)
    for name, value in (("epsilon", EPSILON), ("parts", PARTS.get(length, 1))):
        node.attribute.append(helper.make_attribute(name, value))
    return model


def _inputs(*shape: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape, dtype=np.float32) * 0.7 + 0.3
    if shape == PADDED:
        x[..., int(0.36 * shape[2]) :] = np.array([0.77, -0.41, 1.3], np.float32)[:, None]
    rows = rng.standard_normal((2, shape[1]), dtype=np.float32)
    return {"x": x, "scale": np.sign(rows[0]) + rows[0] / 4, "bias": rows[1]}


def _error(library: Path | None, *shape: int) -> float:
    inputs = _inputs(*shape)
    got = run(_model(shape[2]), library, inputs)
    wide = {name: array.astype(np.float64) for name, array in inputs.items()}
    true = row_normalization(**wide, epsilon=EPSILON) if inputs["x"].size else wide["x"]
    assert got.shape == true.shape and np.isfinite(got).all()
    return float(np.abs(got - true).max(initial=0.0))


def test_the_reference_is_the_definition() -> None:
    x = np.array([[[1.0, 3.0], [5.0, 5.0]]])
    got = row_normalization(x, np.array([2.0, 2.0]), np.array([0.0, 7.0]), epsilon=3.0)
    np.testing.assert_allclose(got, [[[-1.0, 1.0], [7.0, 7.0]]])


@pytest.mark.parametrize("shape", [shape for shape in (*SHAPES, PADDED) if 0 not in shape], ids=str)
def test_the_function_equals_the_reference(shape: tuple[int, ...]) -> None:
    assert _error(None, *shape) <= FUNCTION_LIMIT


def test_sums_in_one_part_are_not_enough() -> None:
    # What the function is there for: the same row added up from one end to the other.
    model = _model(1)
    inputs = _inputs(*PADDED)
    got = run(model, None, inputs)
    wide = {name: array.astype(np.float64) for name, array in inputs.items()}
    true = row_normalization(**wide, epsilon=EPSILON)
    assert float(np.abs(got - true).max()) > 10 * FUNCTION_LIMIT


@pytest.mark.parametrize("isa", ["avx512vnni", "avx512", "avx2", "portable"])
def test_the_kernel_equals_the_reference(
    isa: str, cpu_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONLLM_EDGE_CPU_ISA", isa)
    if instruction_set(cpu_library) != isa:
        pytest.skip(f"this processor has no {isa}")
    for shape in (*SHAPES, PADDED):
        assert _error(cpu_library, *shape) <= KERNEL_LIMIT, shape


def test_a_mean_far_from_zero_costs_no_digits_of_the_variance(cpu_library: Path) -> None:
    # Whole numbers: exact in fp32, so that only the arithmetic can be wrong.
    x = np.random.default_rng(2).integers(-3, 4, (1, 1, 6400)).astype(np.float32) + 40_000
    inputs = {"x": x, "scale": np.ones(1, np.float32), "bias": np.zeros(1, np.float32)}
    wide = {name: array.astype(np.float64) for name, array in inputs.items()}
    true = row_normalization(**wide, epsilon=EPSILON)
    # The mean is rounded to a unit in the last place of 40,000, which is 2 ** -8.
    for library in (cpu_library, None):
        got = run(_model(64), library, inputs)
        assert float(np.abs(got - true).max()) <= 2.0**-8


@pytest.mark.parametrize("name", ["scale", "bias"])
def test_another_number_of_rows_is_refused(name: str, cpu_library: Path) -> None:
    inputs = _inputs(1, 3, 7) | {name: np.ones(2, np.float32)}
    session = open_session(_model(7), cpu_library)
    with pytest.raises(Exception, match=rf"RowNormalization: input '{name}' expected \[3\]"):
        session.run(None, inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("cpu_kernel.h", "kNormalizeBlock = 32", "kNormalizeBlock = 32768"),
        ("cpu_kernel.h", "sum_about<true>(x, count, mean)", "sum_about<true>(x, count, 0.0f)"),
        ("cpu_op.cpp", "row % channels", "row / channels"),
    ],
    ids=["one block", "squares about zero", "another row's scale"],
)
def test_a_planted_fault_is_seen(
    file: str, right: str, wrong: str, plant_fault: PlantFault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONLLM_EDGE_CPU_ISA", "portable")  # the longest chains
    library = plant_fault(f"row_normalization/{file}", right, wrong)
    assert _error(library, *PADDED) > KERNEL_LIMIT
