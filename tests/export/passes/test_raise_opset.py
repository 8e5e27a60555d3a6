from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from tests.export.passes.graphs import make_model, op_list, run
from visionllm_edge.export.passes.raise_opset import raise_opset
from visionllm_edge.runtime.errors import ExportError


def test_operators_that_only_got_types_keep_their_numbers() -> None:
    def build() -> ir.Model:
        return make_model(
            [
                helper.make_node("Reshape", ["x", "shape"], ["flat"]),
                helper.make_node("Transpose", ["flat"], ["turned"], perm=[1, 0]),
                helper.make_node("Cast", ["turned"], ["y"], to=1),
            ],
            inputs={"x": [2, 3]},
            outputs={"y": [2, 3]},
            constants={"shape": np.array([3, 2], np.int64)},
            opset=21,
        )

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    before, after = build(), build()
    assert raise_opset(after, 24) == 1
    assert after.graph.opset_imports[""] == 24
    np.testing.assert_array_equal(run(after, {"x": x})[0], run(before, {"x": x})[0])
    assert raise_opset(after, 21) == 0


@pytest.mark.parametrize(
    ("op", "opset"), [("TopK", 21), ("Reshape", 20)], ids=["another meaning", "too old to know"]
)
def test_an_operator_that_may_mean_something_else_is_refused(op: str, opset: int) -> None:
    outputs = ["y", "rows"] if op == "TopK" else ["y"]
    model = make_model(
        [helper.make_node(op, ["x", "number"], outputs, name="odd")],
        inputs={"x": [4]},
        outputs={"y": None},
        constants={"number": np.array([4], np.int64)},
        opset=opset,
    )
    with pytest.raises(ExportError, match=rf"'odd' \({op}\) is of opset {opset}"):
        raise_opset(model, 24)
    assert model.graph.opset_imports[""] == opset
    assert op_list(model) == [op]
