from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from visionllm_edge.export.ops import cached_attention, ms_deform_attn
from visionllm_edge.export.tracing import trace
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.errors import ExportError
from visionllm_edge.runtime.ports import Port

X = Port("x", "float32", ("n", 4))
Y = Port("y", "float32", ("n", 3))


class _Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


def _session(model: ir.Model) -> ort.InferenceSession:
    return ort.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )


def _trace(module: nn.Module, x: Tensor, *, inputs: Port = X, outputs: Port = Y) -> ir.Model:
    return trace(module, {"x": x}, name="test", inputs=[inputs], outputs=[outputs], opset=19)


def test_ends_carry_the_names_and_symbols_of_the_ports() -> None:
    module = _Linear()
    model = _trace(module, torch.zeros(2, 4))
    (x,), (y,) = model.graph.inputs, model.graph.outputs
    assert (x.name, y.name) == ("x", "y")
    assert [str(axis) for axis in x.shape or ()] == ["n", "4"]
    assert [str(axis) for axis in y.shape or ()] == ["n", "3"]
    assert model.graph.opset_imports[""] == 19
    for rows in (1, 5):
        feed = torch.randn(rows, 4)
        (got,) = _session(model).run(None, {"x": feed.numpy()})
        np.testing.assert_allclose(got, module(feed).detach().numpy(), atol=1e-6)


def test_no_path_of_this_machine_is_left() -> None:
    text = str(ir.serde.serialize_model(_trace(_Linear(), torch.zeros(2, 4))))
    assert "site-packages" not in text
    assert "test_tracing" not in text


def test_a_frozen_axis_is_refused() -> None:
    class Frozen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(int(x.shape[0]), 3) + x[:2, :3]

    with pytest.raises(ExportError, match="stage 'test'"):
        _trace(Frozen(), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (Port("y", "float32", ("n", 5)), r"output expected y \[n, 5\] float32, the graph has"),
        (Port("y", "int64", ("n", 3)), r"output expected y \[n, 3\] int64, the graph has"),
        (Port("y", "float32", ("n",)), r"output expected y \[n\] float32, the graph has"),
    ],
)
def test_ends_that_differ_from_the_ports_are_refused(outputs: Port, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        _trace(_Linear(), torch.zeros(2, 4), outputs=outputs)


def test_what_torch_cannot_export_is_an_export_error() -> None:
    class Bad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3] * float(x.sum().item() > 0 and len(str(x.max().item())))

    with pytest.raises(ExportError, match=r"stage 'test': torch \S+ cannot export it: \w+: "):
        _trace(Bad(), torch.ones(2, 4))


class _Sampling(nn.Module):
    """Deformable attention inside a graph."""

    shapes = torch.tensor([[3, 4], [2, 2]], dtype=torch.int32)
    starts = torch.tensor([0, 12], dtype=torch.int32)

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        out = ms_deform_attn(
            value, self.shapes.clone(), self.starts.clone(), locations, weights.softmax(-1)
        )
        return out.flatten(2)


def test_deformable_attention_becomes_one_node_with_its_function() -> None:
    torch.manual_seed(0)
    ports = [
        Port("value", "float32", (1, 16, 2, 4)),
        Port("locations", "float32", (1, "q", 2, 2, 3, 2)),
        Port("weights", "float32", (1, "q", 2, 2, 3)),
    ]

    def example(queries: int) -> dict[str, Tensor]:
        return {
            "value": torch.randn(1, 16, 2, 4),
            "locations": torch.rand(1, queries, 2, 2, 3, 2) * 1.4 - 0.2,
            "weights": torch.randn(1, queries, 2, 2, 3),
        }

    module = _Sampling()
    output = Port("y", "float32", (1, "q", 8))
    model = trace(module, example(5), name="test", inputs=ports, outputs=[output], opset=19)
    nodes = [node for node in model.graph if node.domain == DOMAIN]
    assert [node.op_type for node in nodes] == ["MultiScaleDeformableAttention"]
    assert nodes[0].attributes["plugin_version"].as_string() == "1"
    assert nodes[0].attributes["plugin_namespace"].as_string() == "visionllm"
    assert (DOMAIN, "MultiScaleDeformableAttention", "") in model.functions
    feeds = example(9)
    (got,) = _session(model).run(None, {name: value.numpy() for name, value in feeds.items()})
    np.testing.assert_allclose(got, module(*feeds.values()).numpy(), atol=2e-6)


class _Cached(nn.Module):
    """Two layers of cached attention with a variable number of buffers."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(40.0)[:, None] / torch.tensor([1.0, 10.0])[None]
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor, past_length: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        present: list[Tensor] = []
        for key, value in zip(past[::2], past[1::2], strict=True):
            half = x[..., :4]
            tables = self.get_buffer("cos"), self.get_buffer("sin")
            x, *new = cached_attention(
                x, half, half * 2, key, value, past_length, *tables, num_heads=2, kv_num_heads=1
            )
            present += new
        return (x, *present)


def test_cached_attention_with_variable_arguments() -> None:
    torch.manual_seed(0)
    names = ["k0", "v0", "k1", "v1"]
    inputs = [
        Port("x", "float32", (1, "s", 8)),
        Port("past_length", "int64", (1,)),
        *(Port(name, "float32", (1, 1, "C", 4)) for name in names),
    ]
    outputs = [
        Port("y", "float32", (1, "s", 8)),
        *(Port(f"new_{name}", "float32", (1, 1, "C", 4)) for name in names),
    ]

    def example(rows: int, past: int, capacity: int) -> dict[str, Tensor]:
        buffers = {name: torch.randn(1, 1, capacity, 4) for name in names}
        return {"x": torch.randn(1, rows, 8), "past_length": torch.tensor([past]), **buffers}

    module = _Cached()
    model = trace(module, example(3, 2, 12), name="test", inputs=inputs, outputs=outputs, opset=21)
    assert [n.op_type for n in model.graph if n.domain == DOMAIN] == ["CachedAttention"] * 2
    for rows, past, capacity in [(1, 0, 16), (1, 15, 16), (5, 6, 30)]:
        feeds = example(rows, past, capacity)
        got = _session(model).run(None, {name: value.numpy() for name, value in feeds.items()})
        for ours, true in zip(got, module(*feeds.values()), strict=True):
            np.testing.assert_allclose(ours, true.numpy(), atol=2e-6)
