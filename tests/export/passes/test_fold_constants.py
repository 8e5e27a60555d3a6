from __future__ import annotations

import numpy as np
from onnx import helper

from tests.export.passes.graphs import make_model, op_list, run
from visionllm_edge.export.passes.fold_constants import fold_constants


def test_a_large_transposed_weight_is_stored_transposed() -> None:
    # Larger than onnxscript's default limits.
    weight = np.random.default_rng(0).standard_normal((800, 900), dtype=np.float32)
    x = np.ones((2, 900), np.float32)
    model = make_model(
        [
            helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "wt"], ["y"]),
        ],
        inputs={"x": ["n", 900]},
        outputs={"y": ["n", 800]},
        constants={"w": weight},
    )
    expected = run(model, {"x": x})
    assert fold_constants(model) == 1
    assert op_list(model) == ["MatMul"]
    assert len(model.graph.initializers) == 1
    np.testing.assert_allclose(run(model, {"x": x})[0], expected[0], atol=1e-3)


def test_small_arithmetic_is_folded_and_shapes_of_inputs_are_not() -> None:
    model = make_model(
        [
            helper.make_node("Add", ["one", "one"], ["two"]),
            helper.make_node("Mul", ["x", "two"], ["twice"]),
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Reshape", ["twice", "shape"], ["y"]),
        ],
        inputs={"x": ["n", 3]},
        outputs={"y": ["n", 3]},
        constants={"one": np.ones(1, np.float32)},
    )
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    fold_constants(model)
    assert "Add" not in op_list(model)
    np.testing.assert_array_equal(run(model, {"x": x})[0], 2 * x)


def test_what_makes_a_constant_huge_stays_an_operator() -> None:
    model = make_model(
        [
            helper.make_node("Expand", ["one", "shape"], ["big"]),
            helper.make_node("Add", ["x", "big"], ["y"]),
        ],
        inputs={"x": [1000, 1000]},
        outputs={"y": [1000, 1000]},
        constants={"one": np.ones(1, np.float32), "shape": np.array([1000, 1000])},
    )
    fold_constants(model)
    assert op_list(model) == ["Expand", "Add"]
