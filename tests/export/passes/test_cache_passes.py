"""The small passes on the decoder's cache: its type, its capacity, how it is written."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from tests.export.passes.graphs import op_list
from tests.plugins.cached_attention.cases import one_node_model
from visionllm_edge.export.passes.fix_axis import fix_axis
from visionllm_edge.export.passes.retype_cache import retype_cache
from visionllm_edge.export.passes.write_cache import write_cache


def _model(batch: int | None = 1, capacity: int | str = "C") -> ir.Model:
    model = ir.serde.deserialize_model(
        one_node_model(heads=4, kv_heads=2, scale=0.3, batch=batch, depth=8)
    )
    for value in (*model.graph.inputs, *model.graph.outputs):
        kind, _, part = (value.name or "").partition("_")
        if kind in ("past", "present") and part in ("key", "value"):
            value.name = f"{'past_key_values' if kind == 'past' else 'present'}.0.{part}"
            value.shape = ir.Shape([batch, 2, capacity, 8])
    return model


def test_only_the_cache_is_retyped() -> None:
    model = _model()
    assert retype_cache(model, ir.DataType.FLOAT16) == 4
    types = {v.name: v.dtype for v in (*model.graph.inputs, *model.graph.outputs)}
    assert {n for n, t in types.items() if t == ir.DataType.FLOAT16} == {
        f"{kind}.0.{part}" for kind in ("past_key_values", "present") for part in ("key", "value")
    }
    assert retype_cache(model, ir.DataType.FLOAT16) == 0


def test_a_symbol_becomes_a_number_everywhere() -> None:
    model = _model()
    assert fix_axis(model, "C", 80) == 4
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert "C" not in [getattr(axis, "value", axis) for axis in value.shape or ()]
    assert fix_axis(model, "C", 90) == 0


@pytest.mark.parametrize(
    ("writing", "opset", "operators"),
    [
        ("scatter_nd", 21, {"ScatterND"}),
        ("concat", 21, {"ScatterND"}),
        ("tensor_scatter", 24, {"TensorScatter"}),
    ],
)
def test_the_body_is_written_as_asked(writing: str, opset: int, operators: set[str]) -> None:
    model = _model(capacity=80)
    assert write_cache(model, model.graph[0], writing) is None
    assert op_list(model) == ["CachedAttention"]
    assert model.graph.opset_imports[""] == opset
    (body,) = model.functions.values()
    assert body.opset_imports[""] == opset
    found = {node.op_type for node in body}
    assert found & {"ScatterND", "TensorScatter"} == operators
    (mask,) = [node for node in body if node.op_type == "Greater"]
    assert (mask.inputs[0].producer().op_type == "Concat") is (writing == "concat")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("batch", "capacity", "reason"),
    [(2, 80, "the batch is not fixed to 1"), (1, "C", "the capacity of the cache is not fixed")],
)
def test_what_tensor_scatter_cannot_do_is_refused(
    batch: int, capacity: int | str, reason: str
) -> None:
    model = _model(batch, capacity)
    assert write_cache(model, model.graph[0], "tensor_scatter") == reason
    assert model.graph.opset_imports[""] == 21


def test_without_a_function_there_is_nothing_to_write() -> None:
    model = _model()
    model.functions.clear()
    refusal = write_cache(model, model.graph[0], "concat")
    assert refusal == "the model holds no function body for it"
