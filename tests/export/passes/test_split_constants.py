from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tests.export.passes.graphs import make_model, op_list, run
from visionllm_edge.export.passes.split_constants import split_constants

WEIGHT = np.arange(6 * 4, dtype=np.float32).reshape(6, 4)
X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.mark.parametrize("named_sizes", [True, False], ids=["sizes", "num_outputs"])
def test_a_split_weight_becomes_its_parts(named_sizes: bool) -> None:
    split = (
        helper.make_node("Split", ["w", "sizes"], ["a", "b"], axis=0)
        if named_sizes
        else helper.make_node("Split", ["w"], ["a", "b"], axis=0, num_outputs=2)
    )
    sizes = np.array([2, 4]) if named_sizes else np.array([3, 3])
    model = make_model(
        [
            split,
            helper.make_node("Transpose", ["a"], ["at"]),
            helper.make_node("Transpose", ["b"], ["bt"]),
            helper.make_node("MatMul", ["x", "at"], ["y"]),
            helper.make_node("MatMul", ["x", "bt"], ["z"]),
        ],
        inputs={"x": [2, 4]},
        outputs={"y": [2, int(sizes[0])], "z": [2, int(sizes[1])]},
        constants={"w": WEIGHT, "sizes": sizes},
    )
    expected = run(model, {"x": X})
    assert split_constants(model) == 1
    assert op_list(model) == ["Transpose", "Transpose", "MatMul", "MatMul"]
    for got, want in zip(run(model, {"x": X}), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_split_into_outputs_is_left_alone() -> None:
    model = make_model(
        [helper.make_node("Split", ["w"], ["a", "b"], axis=0, num_outputs=2)],
        inputs={},
        outputs={"a": [3, 4], "b": [3, 4]},
        constants={"w": WEIGHT},
    )
    assert split_constants(model) == 0
    assert [value.name for value in model.graph.outputs] == ["a", "b"]


def test_data_or_sizes_of_run_time_are_left_alone() -> None:
    model = make_model(
        [
            helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
            helper.make_node("Cast", ["s"], ["sizes"], to=7),
            helper.make_node("Split", ["w", "sizes"], ["c", "d"], axis=0),
        ],
        inputs={"x": [2, 4], "s": [2]},
        outputs={"a": [2, 2], "b": [2, 2], "c": None, "d": None},
        constants={"w": WEIGHT},
    )
    assert split_constants(model) == 0
    assert op_list(model) == ["Split", "Cast", "Split"]
