from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tests.export.passes.graphs import op_list
from tests.plugins.cached_attention.cases import (
    STEPS,
    make_inputs,
    one_node_model,
    reference,
    run_session,
)
from visionllm_edge.export.passes.drop_dead_code import drop_dead_code
from visionllm_edge.export.passes.lower_cached_attention_to_gqa import (
    lower_cached_attention_to_gqa,
    write_gqa_function,
)
from visionllm_edge.plugins.semantic_op import DOMAIN

SCALE = 0.3


def _lowered(heads: int, kv_heads: int, depth: int) -> ir.Model:
    model = ir.serde.deserialize_model(
        one_node_model(heads=heads, kv_heads=kv_heads, scale=SCALE, batch=1, depth=depth)
    )
    (node,) = model.graph
    assert lower_cached_attention_to_gqa(model, node) is None
    drop_dead_code(model)
    return model


def test_op_list_and_domains() -> None:
    model = _lowered(6, 2, 16)
    lengths = ["Shape", "Add", "Sub", "Cast", "Squeeze", "Cast"]
    assert op_list(model) == [*lengths, "GroupQueryAttention"]
    assert not model.functions
    node = model.graph[-1]
    assert node.domain == "com.microsoft"
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {
        "num_heads": 6,
        "kv_num_heads": 2,
        "scale": pytest.approx(SCALE),
        "do_rotary": 1,
        "rotary_interleaved": 0,
    }
    assert [value.name for value in model.graph.outputs] == [
        "attention",
        "present_key",
        "present_value",
    ]


@pytest.mark.parametrize("in_place", [False, True], ids=["copied cache", "shared cache"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "depth"), [(4, 4, 16), (6, 2, 32), (4, 1, 16), (2, 1, 128)]
)
def test_numbers_at_every_step_length(
    heads: int, kv_heads: int, depth: int, in_place: bool
) -> None:
    model = _lowered(heads, kv_heads, depth)
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for start, length in STEPS:
        inputs = make_inputs(start, length, heads=heads, kv_heads=kv_heads, depth=depth)
        expected = reference(inputs, num_heads=heads, kv_num_heads=kv_heads, scale=SCALE)
        got = run_session(session, inputs, in_place=in_place)
        np.testing.assert_allclose(got[0], expected[0], atol=2e-5, err_msg=f"{start}+{length}")
        for ours, true in zip(got[1:], expected[1:], strict=True):
            valid = slice(0, start + length)
            np.testing.assert_allclose(ours[:, :, valid], true[:, :, valid], atol=2e-6)


def test_layers_share_the_length_nodes() -> None:
    proto = one_node_model(heads=4, kv_heads=2, scale=SCALE, batch=1, depth=16)
    second = proto.graph.node.add()
    second.CopyFrom(proto.graph.node[0])
    del second.output[:]
    second.output.extend(["attention2", "key2", "value2"])
    outputs = [onnx.ValueInfoProto.FromString(o.SerializeToString()) for o in proto.graph.output]
    for value, name in zip(outputs, second.output, strict=True):
        value.name = name
    proto.graph.output.extend(outputs)
    model = ir.serde.deserialize_model(proto)
    for node in [node for node in model.graph if node.domain == DOMAIN]:
        assert lower_cached_attention_to_gqa(model, node) is None
    assert op_list(model).count("GroupQueryAttention") == 2
    assert op_list(model).count("Shape") == 1
    first, last = (node for node in model.graph if node.op_type == "GroupQueryAttention")
    assert first.inputs[5:7] == last.inputs[5:7]


@pytest.mark.parametrize(
    ("batch", "depth", "reason"),
    [
        (1, 8, "head size 8 is not a multiple of 16"),
        (1, None, "head size unknown"),
        (2, 16, "batch is 2, expected 1"),
        (None, 16, "expected 1"),
    ],
)
def test_refusals_leave_the_node_alone(batch: int | None, depth: int | None, reason: str) -> None:
    proto = one_node_model(heads=4, kv_heads=2, scale=SCALE, batch=batch, depth=depth)
    model = ir.serde.deserialize_model(proto)
    (node,) = model.graph
    (function,) = model.functions.values()
    for lower in (lower_cached_attention_to_gqa, write_gqa_function):
        refusal = lower(model, node)
        assert refusal is not None
        assert reason in refusal
        assert op_list(model) == ["CachedAttention"]
        assert list(model.functions.values()) == [function]


def test_a_cache_of_another_type_is_refused() -> None:
    proto = one_node_model(heads=4, kv_heads=2, scale=SCALE, batch=1, depth=16, combination=3)
    (node,) = (model := ir.serde.deserialize_model(proto)).graph
    for lower in (lower_cached_attention_to_gqa, write_gqa_function):
        assert lower(model, node) == "the cache is FLOAT16, the new rows are FLOAT"


@pytest.mark.parametrize("in_place", [False, True], ids=["copied cache", "shared cache"])
def test_the_operator_as_the_body_of_the_function(in_place: bool) -> None:
    proto = one_node_model(heads=6, kv_heads=2, scale=SCALE, batch=1, depth=16)
    (node,) = (model := ir.serde.deserialize_model(proto)).graph
    assert write_gqa_function(model, node) is None
    (function,) = model.functions.values()
    assert write_gqa_function(model, node) is None
    assert list(model.functions.values()) == [function], "written once for all nodes"
    lowered = ir.serde.serialize_model(model)
    session = ort.InferenceSession(lowered.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = make_inputs(13, 5, heads=6, kv_heads=2, depth=16)
    expected = reference(inputs, num_heads=6, kv_num_heads=2, scale=SCALE)
    attention, *_ = run_session(session, inputs, in_place=in_place)
    np.testing.assert_allclose(attention, expected[0], atol=5e-6)


def test_without_a_body_there_is_nothing_to_write() -> None:
    proto = one_node_model(heads=6, kv_heads=2, scale=SCALE, batch=1, depth=16)
    (node,) = (model := ir.serde.deserialize_model(proto)).graph
    model.functions.clear()
    assert write_gqa_function(model, node) == "the model holds no function body for it"
