"""Everything that only moves rows becomes one gather, and nothing else does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from tests.export.passes.graphs import make_model, op_list, run
from visionllm_edge.export.passes.infer_types import infer_types
from visionllm_edge.export.passes.merge_row_moves import merge_row_moves

X = np.random.default_rng(5).standard_normal((1, 5, 6, 4)).astype(np.float32)


def _node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        op, inputs.split(), outputs.split(), name=f"{outputs.split()[0]}.node", **attributes
    )


def _model(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Sequence[int] | float],
    *,
    outputs: Sequence[str] = ("y",),
    shape: Sequence[int | str] = X.shape,
) -> ir.Model:
    arrays = {
        name: np.array(value, np.float32 if isinstance(value, float) else np.int64)
        for name, value in constants.items()
    }
    model = make_model(
        nodes,
        inputs={"x": list(shape)},
        outputs=dict.fromkeys(outputs),
        constants=arrays,
        opset=19,
    )
    infer_types(model)
    return model


# A Swin block's way: pad to whole windows, roll, cut into windows of 3, and all of it back.
CUT = [
    _node("Pad", "x pads", "padded"),
    _node("Slice", "padded from_1 end axis_1", "lower"),
    _node("Slice", "padded zero from_1 axis_1", "upper"),
    _node("Concat", "lower upper", "rolled", axis=1),
    _node("Reshape", "rolled cut", "blocks"),
    _node("Transpose", "blocks", "windows", perm=[0, 1, 3, 2, 4, 5]),
    _node("Reshape", "windows flat", "rows"),
]
BACK = [
    _node("Reshape", "seen windows_shape", "apart"),
    _node("Transpose", "apart", "together", perm=[0, 1, 3, 2, 4, 5]),
    _node("Reshape", "together whole", "map"),
    _node("Split", "map parts", "head tail", axis=1),
    _node("Concat", "tail head", "unrolled", axis=1),
    _node("Slice", "unrolled zero five axis_1", "y"),
]
CONSTANTS: dict[str, Sequence[int] | float] = {
    "pads": [0, 0, 0, 0, 0, 1, 0, 0],
    "from_1": [1],
    "end": [2**62],
    "axis_1": [1],
    "zero": [0],
    "five": [5],
    "cut": [1, 2, 3, 2, 3, 4],
    "flat": [1, 4, 9, 4],
    "windows_shape": [1, 2, 2, 3, 3, 4],
    "whole": [1, 6, 6, 4],
    "parts": [5, 1],
}


def _same(nodes: Sequence[onnx.NodeProto], gathers: int, **options: Any) -> ir.Model:
    """The rewritten model; its numbers are those of the plain one, to the bit."""
    plain, model = (_model(nodes, CONSTANTS, **options) for _ in range(2))
    assert merge_row_moves(model) == gathers
    for got, wanted in zip(run(model, {"x": X}), run(plain, {"x": X}), strict=True):
        np.testing.assert_array_equal(got, wanted)
    return model


def test_windows_and_back_are_two_gathers() -> None:
    model = _same([*CUT, _node("Exp", "rows", "seen"), *BACK], 2)
    assert [op for op in op_list(model) if op != "Reshape"] == ["GatherRows", "Exp", "GatherRows"]


def test_there_and_back_again_is_one_gather() -> None:
    nodes = [*CUT, _node("Identity", "rows", "seen"), *BACK]
    assert [op for op in op_list(_same(nodes, 2)) if op != "Reshape"].count("GatherRows") == 2
    joined = [*CUT[:-1], _node("Reshape", "windows flat", "seen"), *BACK]
    assert [op for op in op_list(_same(joined, 1)) if op != "Reshape"] == ["GatherRows"]


def test_several_readers_share_a_gather() -> None:
    nodes = [*CUT, _node("Exp", "rows", "y"), _node("Neg", "rows", "z")]
    model = _same(nodes, 1, outputs=("y", "z"))
    assert op_list(model).count("GatherRows") == 1


def test_a_value_that_is_read_on_the_way_is_gathered_too() -> None:
    nodes = [*CUT, _node("Exp", "rolled", "z"), _node("Exp", "rows", "y")]
    model = _same(nodes, 2, outputs=("y", "z"))
    assert op_list(model).count("GatherRows") == 2
    model = _same(CUT, 2, outputs=("rows", "rolled"))
    assert "GatherRows" in op_list(model)


@pytest.mark.parametrize(
    "nodes",
    [
        [_node("Transpose", "x", "y", perm=[0, 2, 1, 3])],
        [_node("Transpose", "x", "t", perm=[0, 3, 1, 2]), _node("Transpose", "t", "y")],
        [_node("Pad", "x pads filler", "p"), _node("Transpose", "p", "y", perm=[0, 2, 1, 3])],
        [_node("Pad", "x deep", "p"), _node("Transpose", "p", "y", perm=[0, 2, 1, 3])],
        [
            _node("Pad", "x one_more", "p", mode="edge"),
            _node("Pad", "p one_more", "y", mode="edge"),
        ],
        [_node("Slice", "x zero two last", "s"), _node("Transpose", "s", "y", perm=[0, 2, 1, 3])],
        [_node("Reshape", "x cut_last", "s"), _node("Transpose", "s", "y", perm=[0, 2, 1, 3, 4])],
        [
            _node("Exp", "x", "e"),
            _node("Concat", "x e", "c", axis=1),
            _node("Transpose", "c", "y", perm=[0, 2, 1, 3]),
        ],
    ],
    ids=[
        "one move",
        "the last axis moves",
        "padded with ones",
        "columns padded",
        "edges repeated",
        "columns left out",
        "columns cut",
        "rows of two values",
    ],
)
def test_what_stays_as_it_is(nodes: list[onnx.NodeProto]) -> None:
    more: dict[str, Sequence[int] | float] = {
        "filler": 1.0,
        "deep": [0, 0, 0, 0, 0, 0, 0, 1],
        "one_more": [0, 0, 0, 0, 0, 1, 0, 0],
        "two": [2],
        "last": [3],
        "cut_last": [1, 5, 6, 2, 2],
    }
    model = _model(nodes, CONSTANTS | more)
    before = op_list(model)
    assert merge_row_moves(model) == 0
    assert op_list(model) == before


def test_sizes_that_are_not_known_are_left_alone() -> None:
    nodes = [
        _node("Transpose", "x", "t", perm=[0, 2, 1, 3]),
        _node("Pad", "t pads", "y"),
    ]
    model = _model(nodes, CONSTANTS, shape=("n", 5, 6, 4))
    assert merge_row_moves(model) == 0


def test_another_order_would_be_seen() -> None:
    plain, model = (_model([*CUT, _node("Exp", "rows", "y")], CONSTANTS) for _ in range(2))
    merge_row_moves(model)
    index = next(v for name, v in model.graph.initializers.items() if name.endswith("rows.index"))
    assert index.const_value is not None
    turned = np.roll(index.const_value.numpy(), 1)
    index.const_value = ir.tensor(turned, name=index.name)
    (got,), (wanted,) = run(model, {"x": X}), run(plain, {"x": X})
    assert not np.array_equal(got, wanted)
