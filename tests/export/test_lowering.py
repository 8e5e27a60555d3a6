from __future__ import annotations

import onnx_ir as ir
import pytest

from tests.export.passes.graphs import op_list
from tests.plugins.cached_attention.cases import one_node_model
from visionllm_edge.export.lowering import FORMS, TABLE, TARGETS, lower
from visionllm_edge.plugins.registry import SEMANTIC_OPS
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.backends import BACKENDS
from visionllm_edge.runtime.errors import ConfigError, ExportError


def _model(*, depth: int) -> ir.Model:
    return ir.serde.deserialize_model(
        one_node_model(heads=4, kv_heads=2, scale=0.3, batch=1, depth=depth)
    )


def test_the_preferred_form_and_its_report() -> None:
    model = _model(depth=16)
    (entry,) = lower(model, "cpu")
    assert entry.op == "CachedAttention"
    assert entry.form == "group_query_attention"
    assert entry.reason == "preference 1 of 2"
    assert "GroupQueryAttention" in op_list(model)
    assert not model.functions


def test_a_refused_form_is_named_in_the_report() -> None:
    model = _model(depth=8)
    (entry,) = lower(model, "cpu")
    assert entry.form == "function"
    assert "group_query_attention refused: head size 8" in entry.reason
    assert "preference 2 of 2" in entry.reason
    assert op_list(model) == ["CachedAttention"]
    assert (DOMAIN, "CachedAttention", "") in model.functions


def test_a_node_without_any_form_is_refused() -> None:
    model = _model(depth=8)
    model.functions.clear()
    with pytest.raises(ExportError, match=r"no form for target 'cpu'.*no function body"):
        lower(model, "cpu")


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ConfigError, match="target 'toaster': expected one of cpu"):
        lower(_model(depth=16), "toaster")


def test_the_table_covers_every_operator_and_target() -> None:
    assert set(TABLE) == set(SEMANTIC_OPS)
    for forms_by_target in TABLE.values():
        assert set(forms_by_target) == set(TARGETS)
        for forms in forms_by_target.values():
            assert forms
            assert set(forms) <= set(FORMS)
    assert {target.backend for target in TARGETS.values()} <= set(BACKENDS)
