"""Which layers stay out of eight bits, by structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tests.export.passes.graphs import make_model
from visionllm_edge.export.passes.infer_types import infer_types
from visionllm_edge.export.passes.quantized_keep_list import quantizable_layers

CONSTANTS: dict[str, NDArray[Any]] = {
    "w": np.ones((32, 32), np.float32),
    "narrow": np.ones((32, 4), np.float32),
    "pixels": np.ones((32, 3, 2), np.float32),
    "one": np.ones(1, np.float32),
    "k": np.array([1], np.int64),
}


def _node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def _split(
    nodes: Sequence[onnx.NodeProto], *outputs: str
) -> tuple[list[str | None], dict[str | None, str]]:
    model = make_model(
        nodes,
        inputs={"x": [1, 2, 32], "picture": [1, 3, 32], "text": [1, 32, 5]},
        outputs=dict.fromkeys(outputs),
        constants=CONSTANTS,
    )
    infer_types(model)
    chosen, kept = quantizable_layers(model)
    return (
        [node.outputs[0].name for node in chosen],
        {node.outputs[0].name: rule for node, rule in kept.items()},
    )


def test_the_layer_before_an_output_is_kept_but_not_what_a_residual_sum_hides() -> None:
    chosen, kept = _split(
        [
            _node("MatMul", "x w", "inner"),
            _node("Add", "inner x", "sum"),
            _node("MatMul", "sum w", "outer"),
            _node("Add", "outer one", "biased"),
            _node("Sigmoid", "biased", "y"),
        ],
        "y",
        "sum",
    )
    assert chosen == ["inner"]
    assert kept == {"outer": "last"}


def test_pixels_and_narrow_answers_are_kept() -> None:
    chosen, kept = _split(
        [
            _node("Conv", "picture pixels", "patches"),
            _node("MatMul", "x w", "h"),
            _node("Relu", "h", "r"),
            _node("MatMul", "r narrow", "boxes"),
            _node("Add", "patches one", "p"),
        ],
        "p",
        "boxes",
    )
    assert chosen == ["h"]
    assert kept == {"patches": "picture", "boxes": "narrow"}


def test_what_scores_are_made_of_is_kept() -> None:
    chosen, kept = _split(
        [
            _node("MatMul", "x w", "before"),
            _node("Relu", "before", "r"),
            _node("MatMul", "r w", "queries"),
            _node("MatMul", "queries text", "scores"),
        ],
        "scores",
    )
    assert chosen == ["before"]
    assert kept == {"queries": "scores"}


def test_what_a_selection_is_made_of_is_kept() -> None:
    chosen, kept = _split(
        [
            _node("MatMul", "x w", "h"),
            _node("Relu", "h", "best"),
            helper.make_node("TopK", ["best", "k"], ["values", "index"]),
            _node("MatMul", "x w", "other"),
            _node("Add", "other x", "y"),
        ],
        "values",
        "y",
    )
    assert chosen == ["other"]
    assert kept == {"h": "selection"}
