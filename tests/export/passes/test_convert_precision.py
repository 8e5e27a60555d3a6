from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tests.export.passes.graphs import make_model, op_list, run
from tests.export.passes.msda import msda_model
from tests.plugins.ms_deform_attn.test_ms_deform_attn import make_inputs
from visionllm_edge.export.passes.convert_precision import convert_precision
from visionllm_edge.export.passes.drop_dead_code import drop_dead_code
from visionllm_edge.export.passes.infer_types import infer_types
from visionllm_edge.export.passes.share_weights import WeightFile
from visionllm_edge.runtime.errors import ExportError

F32, F16, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 4), dtype=np.float32)


def _chain() -> ir.Model:
    model = make_model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
            helper.make_node("Exp", ["a"], ["b"], name="kept"),
            helper.make_node("MatMul", ["b", "w"], ["c"], name="second"),
            helper.make_node("Add", ["c", "b"], ["y"], name="last"),
        ],
        inputs={"x": [2, 4]},
        outputs={"y": [2, 4]},
        constants={"w": W},
    )
    infer_types(model)
    return model


def _by_name(model: ir.Model, *names: str) -> list[ir.Node]:
    return [node for node in model.graph if node.name in names]


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", F16), ("bf16", BF16)])
def test_casts_stand_where_the_type_changes(precision: str, dtype: ir.DataType) -> None:
    model = _chain()
    assert convert_precision(model, precision, _by_name(model, "kept")) == 3
    drop_dead_code(model)
    # In, before the kept node, once behind it for both readers, and out.
    assert op_list(model) == [
        "Cast", "MatMul", "Cast", "Exp", "Cast", "MatMul", "Add", "Cast",
    ]  # fmt: skip
    assert {n.name: n.outputs[0].dtype for n in model.graph if n.op_type != "Cast"} == {
        "first": dtype, "kept": F32, "second": dtype, "last": dtype,
    }  # fmt: skip
    assert [(v.name, v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)] == [
        ("x", F32),
        ("y", F32),
    ]
    # One converted weight serves both products; the fp32 one is gone.
    assert [v.dtype for v in model.graph.initializers.values()] == [dtype]
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)


def test_numbers_are_those_of_half_precision() -> None:
    x = RNG.standard_normal((2, 4), dtype=np.float32) / 4
    (exact,) = run(_chain(), {"x": x})
    model = _chain()
    convert_precision(model, "fp16", _by_name(model, "kept"))
    (got,) = run(model, {"x": x})
    assert got.dtype == np.float32
    error = np.abs(got - exact).max() / np.abs(exact).max()
    assert 1e-6 < error < 2e-3


def test_named_ends_take_the_half_type() -> None:
    model = _chain()
    convert_precision(model, "fp16", [], half_ends={"x", "y"})
    assert [model.graph.inputs[0].dtype, model.graph.outputs[0].dtype] == [F16, F16]
    assert "Cast" not in op_list(model)


def test_an_output_that_is_also_read_keeps_its_name_and_type() -> None:
    model = _chain()
    model.graph.outputs.append(_by_name(model, "first")[0].outputs[0])
    convert_precision(model, "fp16", _by_name(model, "kept"))
    assert [value.name for value in model.graph.outputs] == ["y", "a"]
    assert [value.dtype for value in model.graph.outputs] == [F32, F32]
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)


def test_semantic_nodes_take_their_type_combination() -> None:
    model = msda_model(make_inputs([(2, 2)]))
    convert_precision(model, "bf16", [])
    node = next(n for n in model.graph if n.domain == "visionllm")
    assert [v.dtype for v in node.inputs if v is not None] == [
        BF16, ir.DataType.INT32, ir.DataType.INT32, F32, BF16,
    ]  # fmt: skip
    assert node.outputs[0].dtype == BF16


def test_a_resize_reads_its_scales_in_fp32() -> None:
    model = make_model(
        [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear")],
        inputs={"x": [1, 1, 2, 2]},
        outputs={"y": [1, 1, 4, 4]},
        constants={"scales": np.array([1, 1, 2, 2], np.float32)},
    )
    infer_types(model)
    convert_precision(model, "fp16", [])
    node = next(n for n in model.graph if n.op_type == "Resize")
    assert node.inputs[2] is not None
    assert node.inputs[2].dtype == F32
    assert node.outputs[0].dtype == F16


@pytest.mark.parametrize("side", [4, 64], ids=["in the graph", "in the weights file"])
def test_a_weight_beyond_fp16_is_refused_by_name(side: int, tmp_path: Path) -> None:
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        inputs={"x": [2, side]},
        outputs={"y": [2, side]},
        constants={"w": np.full((side, side), 1e6, np.float32)},
    )
    infer_types(model)
    with (
        WeightFile(tmp_path / "weights") as weights,
        pytest.raises(ExportError, match="weight 'w' is not finite in FLOAT16"),
    ):
        convert_precision(model, "fp16", [])
        weights.take(model)


def test_branches_are_refused() -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1])],
    )
    model = make_model(
        [helper.make_node("If", ["c"], ["y"], name="if", then_branch=body, else_branch=body)],
        inputs={"x": [1]},
        outputs={"y": [1]},
        constants={"c": np.array(True)},
    )
    with pytest.raises(ExportError, match=r"node 'if' \(If\) has branches"):
        convert_precision(model, "fp16", [])
