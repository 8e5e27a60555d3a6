from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from tests.export.passes.graphs import make_model
from visionllm_edge.export.passes.infer_types import infer_types
from visionllm_edge.runtime.errors import ExportError


def test_types_and_shapes_are_filled_in() -> None:
    model = make_model(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Shape", ["a"], ["y"])],
        inputs={"x": [2, 3]},
        outputs={"y": [2]},
    )
    model.graph.outputs[0].dtype = ir.DataType.INT64
    assert infer_types(model) == 1
    (relu, _) = model.graph
    assert relu.outputs[0].dtype == ir.DataType.FLOAT
    assert relu.outputs[0].shape == ir.Shape([2, 3])


def test_a_table_of_a_column_and_a_row(caplog: pytest.LogCaptureFixture) -> None:
    """ONNX, where it follows values, takes the two for shapes and refuses the graph."""
    model = make_model(
        [
            helper.make_node("Unsqueeze", ["rows", "one"], ["column"]),
            helper.make_node("Unsqueeze", ["columns", "zero"], ["row"]),
            helper.make_node("Mul", ["column", "row"], ["table"]),
            helper.make_node("CastLike", ["table", "x"], ["numbers"]),
            helper.make_node("Add", ["numbers", "x"], ["y"]),
        ],
        inputs={"x": [2, 3]},
        outputs={"y": [2, 3]},
        constants={
            "rows": np.arange(2),
            "columns": np.arange(3),
            "zero": np.array([0]),
            "one": np.array([1]),
        },
    )
    with pytest.raises(onnx.shape_inference.InferenceError, match="Invalid rank for Mul"):
        onnx.shape_inference.infer_shapes(
            ir.to_proto(model), check_type=True, strict_mode=True, data_prop=True
        )
    infer_types(model)
    shapes = {value.name: value.shape for node in model.graph for value in node.outputs}
    assert shapes["table"] == shapes["numbers"] == ir.Shape([2, 3])
    assert not caplog.records


@pytest.mark.filterwarnings("ignore")
def test_a_value_that_nothing_is_known_of_is_refused_by_name() -> None:
    model = make_model(
        [helper.make_node("Mystery", ["x"], ["a"], domain="elsewhere"),
         helper.make_node("Relu", ["a"], ["y"])],
        inputs={"x": [2]},
        outputs={"y": [2]},
        domains={"elsewhere": 1},
    )  # fmt: skip
    with pytest.raises(ExportError, match=r"type of 'a' \(Mystery\) cannot be inferred"):
        infer_types(model)
