from __future__ import annotations

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
