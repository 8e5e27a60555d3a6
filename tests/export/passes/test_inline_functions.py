from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from tests.export.passes.graphs import op_list, run
from tests.export.passes.msda import feeds, msda_model
from tests.plugins.cached_attention.cases import make_inputs as cache_inputs
from tests.plugins.cached_attention.cases import one_node_model, reference
from tests.plugins.ms_deform_attn.test_ms_deform_attn import make_inputs
from visionllm_edge.export.passes.inline_functions import inline_functions
from visionllm_edge.plugins.ms_deform_attn.reference import ms_deform_attn
from visionllm_edge.runtime.errors import ExportError

SIZES = [(4, 3), (2, 2)]


def _attention(layers: int) -> ir.Model:
    proto = one_node_model(heads=4, kv_heads=2, scale=0.3, batch=1, depth=8)
    model = ir.serde.deserialize_model(proto)
    first = model.graph[0]
    for index in range(1, layers):
        copy = ir.Node(
            first.domain, first.op_type, list(first.inputs), list(first.attributes.values()),
            num_outputs=3, name=f"layer{index}",
        )  # fmt: skip
        for output, like in zip(copy.outputs, first.outputs, strict=True):
            output.name = f"{like.name}{index}"
            output.type, output.shape = like.type, like.shape
        model.graph.append(copy)
        model.graph.outputs.extend(copy.outputs)
    return model


def test_only_standard_operators_remain_and_numbers_agree() -> None:
    inputs = make_inputs(SIZES)
    model = msda_model(inputs)
    assert inline_functions(model, {"MultiScaleDeformableAttention"}) == 1
    counts = Counter(op_list(model))
    assert {node.domain for node in model.graph} == {""}
    assert counts["GridSample"] == 2
    assert "CastLike" not in counts
    # Fixed sizes leave no arithmetic on shapes.
    assert not {"Shape", "Constant", "Slice"} - {"Slice"} & set(counts)
    assert not model.functions
    expected = ms_deform_attn(*inputs.values())
    np.testing.assert_allclose(run(model, feeds(inputs))[0], expected, atol=2e-6)


def test_every_value_has_a_type_and_a_name_of_its_own() -> None:
    model = _attention(2)
    assert inline_functions(model, {"CachedAttention"}) == 2
    values = [value for node in model.graph for value in node.outputs]
    assert all(value.dtype is not None for value in values)
    names = [value.name for value in values]
    assert len(names) == len(set(names))


def test_layers_share_masks_and_positions() -> None:
    one, two = _attention(1), _attention(2)
    inline_functions(one, {"CachedAttention"})
    inline_functions(two, {"CachedAttention"})
    for op in ("Range", "Greater", "Where"):
        assert op_list(two).count(op) == op_list(one).count(op)
    assert [value.name for value in two.graph.outputs][3:] == [
        "attention1", "present_key1", "present_value1",
    ]  # fmt: skip


def test_the_cache_is_right_at_a_filled_step() -> None:
    model = _attention(1)
    inline_functions(model, {"CachedAttention"})
    inputs = cache_inputs(13, 5, heads=4, kv_heads=2)
    expected = reference(inputs, num_heads=4, kv_num_heads=2, scale=0.3)
    got = run(model, inputs)
    np.testing.assert_allclose(got[0], expected[0], atol=2e-5)


def test_other_functions_stay() -> None:
    model = msda_model(make_inputs(SIZES))
    assert inline_functions(model, {"CachedAttention"}) == 0
    assert len(model.functions) == 1
    assert op_list(model) == ["MultiScaleDeformableAttention"]


def test_a_function_of_another_opset_is_refused() -> None:
    model = msda_model(make_inputs(SIZES))
    model.graph.opset_imports[""] = 18
    with pytest.raises(ExportError, match="version 18 in the model but version 19"):
        inline_functions(model, {"MultiScaleDeformableAttention"})
