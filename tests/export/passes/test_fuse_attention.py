"""Attention in standard operators becomes one node where that is certain, and stays where not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPAttention

from tests.export.passes.graphs import make_model, op_list
from tests.plugins.cpu.nodes import open_session
from visionllm_edge.export.components.swin import (
    attend_in_windows,
    relative_index,
    window_attention,
)
from visionllm_edge.export.lowering import lower
from visionllm_edge.export.passes.axis_views import Part, Size, lengths_of, seen_through
from visionllm_edge.export.passes.fuse_attention import MOST_NUMBERS, fuse_attention
from visionllm_edge.export.tracing import trace
from visionllm_edge.runtime.ports import Port
from visionllm_edge.runtime.targets import TARGETS

Arrays = Mapping[str, NDArray[Any]]
FUSED = "UnmaskedAttention"


def _run(model: ir.Model, feeds: Arrays, library: Path | None) -> list[NDArray[Any]]:
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto)
    return [np.asarray(out) for out in open_session(proto, library).run(None, dict(feeds))]


def _fuse_and_compare(model: ir.Model, feeds: Arrays, library: Path | None, fused: int) -> None:
    """The pass fuses so many, and the graph computes the same, with the kernel and without."""
    expected = _run(model, feeds, None)
    left = op_list(model).count("Softmax") - fused
    assert fuse_attention(model) == fused
    assert (op_list(model).count("Softmax"), op_list(model).count(FUSED)) == (left, fused)
    for kernels in (None, library):
        for got, true in zip(_run(model, feeds, kernels), expected, strict=True):
            assert got.shape == true.shape
            np.testing.assert_allclose(got, true, rtol=0, atol=1e-5 * np.abs(true).max())


class _Clip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = CLIPVisionConfig(hidden_size=32, num_attention_heads=4)
        config._attn_implementation = "sdpa"
        self.attention = CLIPAttention(config)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x)[0]
        return out


def _traced(
    module: nn.Module, x: Tensor, ports: Sequence[Port], outputs: Sequence[Port]
) -> ir.Model:
    return trace(module, {"x": x}, name="test", inputs=ports, outputs=outputs, opset=21)


def test_the_attention_of_clip_with_its_computed_shapes(cpu_library: Path) -> None:
    torch.manual_seed(0)
    rows = Port("x", "float32", ("n", 9, 32))
    model = _traced(_Clip(), torch.randn(2, 9, 32), [rows], [Port("y", "float32", ("n", 9, 32))])
    assert {"Slice", "Concat", "Softmax"} <= set(op_list(model))
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 9, 32), dtype=np.float32)}
    _fuse_and_compare(model, feeds, cpu_library, fused=1)
    assert not {"Slice", "Transpose", "Softmax"} & set(op_list(model))
    (node,) = [node for node in model.graph if node.op_type == FUSED]
    assert node.attributes["num_heads"].as_int() == 4
    assert node.attributes["scale"].as_float() == pytest.approx(8**-0.5)
    bias = node.inputs[3]
    assert bias is not None and bias.const_value is not None
    assert bias.const_value.numpy().tolist() == [[[[0.0]]]]


class _Windows(nn.Module):
    """Attention in windows as a Swin block has it, first in their place, then shifted."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.table = nn.Parameter(torch.randn(13 * 13, 2))
        self.register_buffer("places", relative_index(7))

    def forward(self, x: Tensor) -> Tensor:
        for shift in (0, 3):
            x = x + attend_in_windows(x, self._attend, 7, shift)  # type: ignore[arg-type]
        return x

    def _attend(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        bias = self.table[self.places].permute(2, 0, 1)[None]
        q, k, v = (linear(windows) for linear in self.linears)
        return window_attention(q, k, v, bias, mask, 2)


def test_the_windows_of_swin_share_their_biases(cpu_library: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 26, 19, 16)  # 4 x 3 windows, the last ones padded
    rows = Port("x", "float32", tuple(x.shape))
    model = _traced(_Windows(), x, [rows], [Port("y", "float32", tuple(x.shape))])
    _fuse_and_compare(model, {"x": x.numpy()}, cpu_library, fused=2)
    shapes = [
        tuple(tuple(value.shape or ()) for value in node.inputs[3:] if value is not None)
        for node in model.graph
        if node.op_type == FUSED
    ]
    assert shapes == [((1, 2, 49, 49), (1,)), ((4, 2, 49, 49), (12,))]


# A graph by hand: x [2, 5, 12] as query, key and value of 3 heads. Changed in one place each.
_SHAPES: dict[str, NDArray[Any]] = {
    "apart": np.array([2, 5, 3, 4], np.int64),
    "joined": np.array([2, 5, 12], np.int64),
    "half": np.array(0.5, np.float32),
    "bias": np.random.default_rng(2).standard_normal((1, 3, 5, 5)).astype(np.float32),
    "mask": np.random.default_rng(3).standard_normal((2, 1, 5, 5)).astype(np.float32),
}


def _nodes(
    *,
    perm: Sequence[int] = (0, 2, 1, 3),
    key_perm: Sequence[int] = (0, 2, 3, 1),
    axis: int = -1,
    added: Sequence[str] = ("bias", "mask"),
    divide: bool = False,
    output_perm: Sequence[int] = (0, 2, 1, 3),
) -> list[onnx.NodeProto]:
    nodes = []
    for name, order in (("q", perm), ("k", key_perm), ("v", perm)):
        nodes.append(helper.make_node("Reshape", [f"{name}_rows", "apart"], [f"{name}4"]))
        nodes.append(helper.make_node("Transpose", [f"{name}4"], [name], perm=order))
    nodes.append(helper.make_node("MatMul", ["q", "k"], ["scores"]))
    nodes.append(helper.make_node("Div" if divide else "Mul", ["scores", "half"], ["scaled"]))
    last = "scaled"
    for name in added:
        nodes.append(helper.make_node("Add", [name, last], [f"{last}_{name}"]))
        last = f"{last}_{name}"
    nodes.append(helper.make_node("Softmax", [last], ["weights"], axis=axis))
    nodes.append(helper.make_node("MatMul", ["weights", "v"], ["mixed"]))
    nodes.append(helper.make_node("Transpose", ["mixed"], ["ordered"], perm=output_perm))
    nodes.append(helper.make_node("Reshape", ["ordered", "joined"], ["y"]))
    return nodes


_INPUTS: dict[str, Sequence[int | str]] = {f"{name}_rows": (2, 5, 12) for name in "qkv"}


def _by_hand(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Mapping[str, Sequence[int | str]] = _INPUTS,
    outputs: Mapping[str, Sequence[int | str] | None] | None = None,
    constants: Arrays | None = None,
) -> ir.Model:
    read = {name for node in nodes for name in node.input}
    known = {**_SHAPES, **(constants or {})}
    model = make_model(
        nodes,
        inputs=inputs,
        outputs=outputs or {"y": (2, 5, 12)},
        constants={name: array for name, array in known.items() if name in read},
    )
    proto = onnx.shape_inference.infer_shapes(ir.serde.serialize_model(model))
    return ir.serde.deserialize_model(proto)


def _feeds(shapes: Mapping[str, Sequence[int | str]] = _INPUTS) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(1)
    sizes = {name: [int(axis) for axis in shape] for name, shape in shapes.items()}
    return {n: rng.standard_normal(size).astype(np.float32) for n, size in sizes.items()}


def test_biases_add_up_and_a_later_factor_reaches_them(cpu_library: Path) -> None:
    _fuse_and_compare(_by_hand(_nodes()), _feeds(), cpu_library, fused=1)
    nodes = _nodes(divide=True)
    at = next(i for i, node in enumerate(nodes) if node.op_type == "Softmax")
    nodes.insert(at, helper.make_node("Mul", ["half", nodes[at].input[0]], ["halved"]))
    nodes[at + 1].input[0] = "halved"
    _fuse_and_compare(_by_hand(nodes), _feeds(), cpu_library, fused=1)


def test_rows_of_keys_of_unknown_number_and_heads_merged_with_the_batch(cpu_library: Path) -> None:
    shapes = {"six": [6, 5, 4], "four": [2, 3, 5, 4], "keys": [0, -1, 3, 4], "merge": [6, -1, 4]}
    gone = ("scores", "mixed")
    nodes = _nodes(key_perm=(0, 2, 1, 3), added=())
    nodes = [node for node in nodes if node.output[0] not in gone]
    for node in nodes:
        if node.output[0] in ("k4", "v4"):
            node.input[1] = "keys"
    merged = [
        helper.make_node("Reshape", ["q", "six"], ["q3"]),
        helper.make_node("Reshape", ["k", "merge"], ["k3"]),
        helper.make_node("Reshape", ["v", "merge"], ["v3"]),
        helper.make_node("Transpose", ["k3"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q3", "kt"], ["scores"]),
    ]
    mixed = [
        helper.make_node("MatMul", ["weights", "v3"], ["mixed3"]),
        helper.make_node("Reshape", ["mixed3", "four"], ["mixed"]),
    ]
    nodes = [*nodes[:6], *merged, *nodes[6:8], *mixed, *nodes[8:]]
    rows = (2, "T", 12)
    inputs: dict[str, Sequence[int | str]] = {**_INPUTS, "k_rows": rows, "v_rows": rows}
    constants = {name: np.array(shape, np.int64) for name, shape in shapes.items()}
    model = _by_hand(nodes, inputs=inputs, constants=constants)
    feeds = _feeds({"q_rows": (2, 5, 12), "k_rows": (2, 8, 12), "v_rows": (2, 8, 12)})
    _fuse_and_compare(model, feeds, cpu_library, fused=1)


def _second_reader(value: str) -> Callable[[list[onnx.NodeProto]], None]:
    def change(nodes: list[onnx.NodeProto]) -> None:
        nodes.append(helper.make_node("Neg", [value], ["z"]))

    return change


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"axis": 2, "added": ()}, None),
        ({"added": ()}, _second_reader("weights")),
        ({"added": ()}, _second_reader("scaled")),
        ({"added": ()}, _second_reader("k")),
        ({"added": ()}, _second_reader("mixed")),
        # Rows of the output side by side with other heads than those of the query.
        ({"added": (), "output_perm": (0, 3, 2, 1)}, None),
        # The depth counts as rows and the rows as depth.
        ({"added": (), "perm": (0, 2, 3, 1), "key_perm": (0, 2, 1, 3)}, None),
    ],
    ids=[
        "another axis",
        "weights read",
        "scores read",
        "keys read",
        "sums read",
        "other order",
        "other meaning",
    ],
)
def test_what_is_not_certain_stays(
    options: dict[str, Any], change: Callable[[list[onnx.NodeProto]], None] | None
) -> None:
    nodes = _nodes(**options)
    outputs: dict[str, Sequence[int | str] | None] = {"y": None}
    if change is not None:
        change(nodes)
        outputs["z"] = None
    model = _by_hand(nodes, outputs=outputs)
    _run(model, _feeds(), None)
    before = op_list(model)
    assert fuse_attention(model) == 0
    assert op_list(model) == before


def test_a_computed_mask_stays() -> None:
    nodes = _nodes(added=("computed",))
    nodes.insert(0, helper.make_node("Neg", ["given"], ["computed"]))
    model = _by_hand(nodes, inputs={**_INPUTS, "given": (2, 1, 5, 5)})
    assert fuse_attention(model) == 0
    assert fuse_attention(_by_hand(_nodes(added=("mask",)))) == 1


def test_heads_that_outgrow_the_near_caches_stay() -> None:
    def model(keys: int) -> ir.Model:
        shape: dict[str, Sequence[int | str]] = dict.fromkeys(_INPUTS, (1, keys, 192))
        sizes = {"apart": np.array([1, keys, 3, 64]), "joined": np.array([1, keys, 192])}
        return _by_hand(_nodes(added=()), inputs=shape, outputs={"y": None}, constants=sizes)

    most = MOST_NUMBERS // 64
    assert [fuse_attention(model(keys)) for keys in (most, most + 1)] == [1, 0]


def test_only_graphs_for_our_kernel_are_fused() -> None:
    for name, fused in (("cpu", 1), ("h100", 0)):
        model = _by_hand(_nodes())
        report = lower(model, TARGETS[name], precision="fp32")
        assert [(entry.op, entry.form) for entry in report] == [(FUSED, "cpu_kernel")] * fused
        assert op_list(model).count(FUSED) == fused


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [
        ([-1, 3, 4], [Size(5, ("n",)), Size(3), Size(4)]),
        ([0, 0, -1], [Size(1, ("n",)), Size(5), Size(12)]),
        ([0, -1], [Size(1, ("n",)), Size(60)]),
        ([5, -1], None),  # n need not be a multiple of 5
        ([0, 5, 7, -1], None),
    ],
)
def test_a_reshape_is_followed_where_its_lengths_are_certain(
    shape: list[int], lengths: list[Size] | None
) -> None:
    value = ir.Value(name="shape", const_value=ir.tensor(np.array(shape, np.int64)))
    node = ir.Node("", "Reshape", [ir.Value(name="x"), value], num_outputs=1)
    view = seen_through([[Part(Size(1, ("n",)))], [Part(Size(5))], [Part(Size(12))]], node)
    assert (None if view is None else lengths_of(view)) == lengths
