from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tests.export.passes.graphs import make_model, op_list, run
from visionllm_edge.export.passes.lower_opset import lower_opset
from visionllm_edge.runtime.errors import ExportError


def _reshaped(opset: int = 21) -> ir.Model:
    return make_model(
        [
            helper.make_node("Reshape", ["x", "shape"], ["flat"], name="flatten"),
            helper.make_node("Transpose", ["flat"], ["turned"], perm=[1, 0]),
            helper.make_node("Softmax", ["turned"], ["y"], axis=0),
        ],
        inputs={"x": [2, 3]},
        outputs={"y": [2, 3]},
        constants={"shape": np.array([3, 2], np.int64)},
        opset=opset,
    )


def test_operators_that_only_got_types_keep_their_numbers() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    (expected,) = run(_reshaped(), {"x": x})
    model = _reshaped()
    assert lower_opset(model, 19) == 1
    assert model.graph.opset_imports[""] == 19
    assert op_list(model) == ["Reshape", "Transpose", "Softmax"]
    np.testing.assert_array_equal(run(model, {"x": x})[0], expected)


def test_an_older_graph_is_left_alone() -> None:
    model = _reshaped(19)
    assert lower_opset(model, 20) == 0
    assert model.graph.opset_imports[""] == 19


def test_an_operator_that_changed_its_meaning_is_refused() -> None:
    model = make_model(
        [helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], name="gn", num_groups=2)],
        inputs={"x": [1, 4, 3]},
        outputs={"y": [1, 4, 3]},
        constants={"s": np.ones(4, np.float32), "b": np.zeros(4, np.float32)},
        opset=21,
    )
    with pytest.raises(ExportError, match=r"'gn' \(GroupNormalization\) is of opset 21"):
        lower_opset(model, 20)
    assert model.graph.opset_imports[""] == 21


def test_a_feature_of_the_newer_opset_is_refused() -> None:
    model = make_model(
        [helper.make_node("DequantizeLinear", ["q", "s"], ["y"], name="dq", axis=0, block_size=2)],
        inputs={"x": [1]},
        outputs={"y": [4, 2]},
        constants={"s": np.ones((2, 2), np.float32)},
        opset=21,
    )
    packed = helper.make_tensor("q", TensorProto.INT4, [4, 2], [1] * 8)
    tensor = ir.serde.deserialize_tensor(packed)
    value = ir.Value(name="q", shape=ir.Shape([4, 2]), type=ir.TensorType(ir.DataType.INT4))
    value.const_value = tensor
    model.graph.register_initializer(value)
    model.graph[0].replace_input_with(0, value)
    with pytest.raises(ExportError, match="needs opset 21 for block_size, INT4"):
        lower_opset(model, 20)
