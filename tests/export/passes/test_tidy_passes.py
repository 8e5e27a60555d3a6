"""The three short passes: metadata, dead code, duplicates."""

from __future__ import annotations

import numpy as np
from onnx import helper

from tests.export.passes.graphs import make_model, op_list, run
from visionllm_edge.export.passes.clear_metadata import clear_metadata
from visionllm_edge.export.passes.drop_dead_code import drop_dead_code
from visionllm_edge.export.passes.merge_duplicates import merge_duplicates

X = np.arange(3, dtype=np.float32)


def test_metadata_and_doc_strings_go() -> None:
    model = make_model(
        [helper.make_node("Relu", ["x"], ["y"])], inputs={"x": [3]}, outputs={"y": [3]}
    )
    node = model.graph[0]
    node.metadata_props["pkg.torch.onnx.stack_trace"] = "File /somewhere/model.py"
    node.doc_string = "as traced"
    model.metadata_props["note"] = "x"
    assert clear_metadata(model) == 1
    assert not node.metadata_props
    assert not model.metadata_props
    assert not node.doc_string
    assert clear_metadata(model) == 0


def test_dead_nodes_and_weights_go() -> None:
    model = make_model(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Add", ["x", "w"], ["unused"])],
        inputs={"x": [3]},
        outputs={"y": [3]},
        constants={"w": np.ones(3, np.float32)},
    )
    assert drop_dead_code(model) == 2
    assert op_list(model) == ["Relu"]
    assert not model.graph.initializers
    assert drop_dead_code(model) == 0


def test_equal_weights_and_equal_nodes_are_merged_and_different_ones_not() -> None:
    model = make_model(
        [
            helper.make_node("Add", ["x", "v"], ["a"]),
            helper.make_node("Add", ["x", "w"], ["b"]),
            helper.make_node("Add", ["x", "u"], ["c"]),
            helper.make_node("Mul", ["a", "b"], ["d"]),
            helper.make_node("Sub", ["d", "c"], ["y"]),
        ],
        inputs={"x": [3]},
        outputs={"y": [3]},
        constants={
            "v": np.ones(3, np.float32),
            "w": np.ones(3, np.float32),
            "u": np.full(3, 2, np.float32),
        },
    )
    expected = run(model, {"x": X})
    assert merge_duplicates(model) == 2
    assert op_list(model) == ["Add", "Add", "Mul", "Sub"]
    np.testing.assert_array_equal(run(model, {"x": X})[0], expected[0])
