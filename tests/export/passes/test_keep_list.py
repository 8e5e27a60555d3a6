from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tests.export.passes.graphs import make_model
from tests.export.passes.msda import msda_model
from tests.plugins.ms_deform_attn.test_ms_deform_attn import make_inputs
from visionllm_edge.export.passes.infer_types import infer_types
from visionllm_edge.export.passes.keep_list import keep_list

W = np.ones((4, 4), np.float32)
HALF = ir.DataType.FLOAT16


def _kept(
    nodes: Sequence[onnx.NodeProto], *outputs: str, half: ir.DataType = HALF
) -> dict[str, str]:
    """Name of the node's output -> rule."""
    model = make_model(
        nodes,
        inputs={"x": [1, 2, 4], "z": [1, 4, 2]},
        outputs=dict.fromkeys(outputs),
        constants={"w": W, "one": np.ones(1, np.float32), "two": np.array([2], np.float32),
                   "kernel": np.ones((2, 2, 1), np.float32), "k": np.array([1], np.int64)},
    )  # fmt: skip
    infer_types(model)
    kept = keep_list(model, half)
    return {str(node.outputs[0].name): rule for node, rule in kept.items()}


def _node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def test_an_rms_norm_is_kept_up_to_the_next_weights() -> None:
    kept = _kept(
        [
            _node("MatMul", "x w", "before"),
            _node("Pow", "before two", "squares"),
            _node("ReduceMean", "squares", "mean", keepdims=1),
            _node("Sqrt", "mean", "root"),
            _node("Div", "before root", "normed"),
            _node("MatMul", "normed w", "after"),
            _node("Add", "after before", "y"),
        ],
        "y",
    )
    assert kept == {"squares": "range", "mean": "range", "root": "range", "normed": "spread"}


def test_ordinary_attention_is_not_kept() -> None:
    kept = _kept(
        [
            _node("MatMul", "x z", "scores"),
            _node("Mul", "scores two", "scaled"),
            _node("Softmax", "scaled", "mix"),
            _node("MatMul", "mix x", "y"),
        ],
        "y",
    )
    assert kept == {}


def test_two_way_fusion_keeps_its_scores() -> None:
    kept = _kept(
        [
            _node("MatMul", "x z", "scores"),
            _node("Softmax", "scores", "there"),
            _node("Transpose", "scores", "turned", perm=[0, 2, 1]),
            _node("Softmax", "turned", "back"),
            _node("MatMul", "there x", "y"),
            _node("MatMul", "back x", "y2"),
        ],
        "y",
        "y2",
    )
    assert kept["scores"] == "scores"
    assert {kept[name] for name in ("there", "turned", "back")} == {"spread"}
    assert not {"y", "y2"} & set(kept)


def test_class_scores_are_kept_and_weights_are_not() -> None:
    kept = _kept(
        [
            _node("MatMul", "x w", "features"),
            _node("Transpose", "w", "turned", perm=[1, 0]),
            _node("MatMul", "features turned", "projected"),
            _node("MatMul", "projected z", "y"),
        ],
        "y",
    )
    assert kept == {"y": "scores"}


def test_what_a_selection_is_computed_from_is_kept() -> None:
    kept = _kept(
        [
            _node("MatMul", "x w", "features"),
            _node("ReduceMax", "features", "best"),
            helper.make_node("TopK", ["best", "k"], ["value", "index"]),
            _node("MatMul", "features w", "y"),
        ],
        "value",
        "y",
    )
    assert kept["features"] == kept["best"] == "selection"
    assert "y" not in kept


def test_geometry_comes_from_integers() -> None:
    kept = _kept(
        [
            _node("Shape", "x", "shape"),
            _node("Cast", "shape", "size", to=TensorProto.FLOAT),
            _node("Div", "size two", "ratio"),
            _node("MatMul", "x w", "y"),
        ],
        "ratio",
        "y",
    )
    assert kept == {"size": "geometry", "ratio": "spread"}


def test_an_angle_is_kept_back_to_the_graphs_inputs() -> None:
    kept = _kept(
        [
            _node("Mul", "x two", "angle"),
            _node("Sin", "angle", "sine"),
            _node("MatMul", "sine w", "hidden"),
            _node("Mul", "hidden two", "other_angle"),  # its own rounding is the weights'
            _node("Cos", "other_angle", "y"),
        ],
        "y",
    )
    assert kept == {"angle": "phase", "sine": "range", "y": "range"}


def test_sampling_locations_are_kept_back_to_their_weights() -> None:
    inputs = make_inputs([(2, 2)])
    model = msda_model(inputs)
    node = model.graph[0]
    locations = node.inputs[3]
    assert locations is not None
    shifted = ir.Node("", "Relu", [locations], num_outputs=1, name="shift")
    shifted.outputs[0].name = "shifted"
    shifted.outputs[0].type, shifted.outputs[0].shape = locations.type, locations.shape
    model.graph.insert_before(node, shifted)
    node.replace_input_with(3, shifted.outputs[0])
    assert keep_list(model, HALF) == {shifted: "locations"}


@pytest.mark.parametrize(("half", "kept"), [(HALF, {}), (ir.DataType.BFLOAT16, {"y": "types"})])
def test_an_operator_without_the_type_is_kept(half: ir.DataType, kept: dict[str, str]) -> None:
    # Conv takes bf16 from opset 22 on.
    assert _kept([_node("Conv", "x kernel", "y")], "y", half=half) == kept
