"""The lowering table and walk: forms per target, refusals, what is left in the graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from tests.export.passes.graphs import op_list
from tests.export.passes.msda import msda_model
from tests.plugins.cached_attention.cases import one_node_model
from tests.plugins.ms_deform_attn.test_ms_deform_attn import make_inputs
from visionllm_edge.export.lowering import (
    CAPACITY,
    FORMS,
    KEPT,
    TABLE,
    forms_for,
    lower,
    lowered_ports,
)
from visionllm_edge.plugins.registry import SEMANTIC_OPS
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.backends import BACKENDS
from visionllm_edge.runtime.errors import ConfigError, ExportError
from visionllm_edge.runtime.ports import Port, StagePorts
from visionllm_edge.runtime.targets import TARGETS

CPU = TARGETS["cpu"]
ORIN = TARGETS["jetson-orin-jp6"]
MSDA = (DOMAIN, "MultiScaleDeformableAttention", "")


def _attention(*, depth: int) -> ir.Model:
    return ir.serde.deserialize_model(
        one_node_model(heads=4, kv_heads=2, scale=0.3, batch=1, depth=depth)
    )


def _sampling() -> ir.Model:
    return msda_model(make_inputs([(4, 3), (2, 2)]))


def test_the_form_of_a_kernel_keeps_the_node_and_takes_the_best_function() -> None:
    model = _attention(depth=16)
    (entry,) = lower(model, CPU)
    assert (entry.op, entry.form) == ("CachedAttention", "cpu_kernel")
    assert entry.reason == "our kernel where its library is there, else the function of the file"
    assert op_list(model) == ["CachedAttention"]
    (body,) = model.functions.values()
    assert "GroupQueryAttention" in [node.op_type for node in body]
    # Heads that ONNX Runtime's operator does not take keep the function of standard operators.
    narrow = _attention(depth=8)
    lower(narrow, CPU)
    (body,) = narrow.functions.values()
    assert "GroupQueryAttention" not in [node.op_type for node in body]


def test_a_refused_form_is_named_in_the_report() -> None:
    prefer = {"CachedAttention": "group_query_attention"}
    model = _attention(depth=8)
    (entry,) = lower(model, CPU, prefer=prefer)
    assert entry.form == "cpu_kernel"
    assert entry.reason.startswith("group_query_attention refused: head size 8")
    wide = _attention(depth=16)
    (entry,) = lower(wide, CPU, prefer=prefer)
    assert entry.reason == "ONNX Runtime's operator updates the cache in place"
    assert "GroupQueryAttention" in op_list(wide)
    assert not wide.functions


def test_a_node_without_any_form_is_refused() -> None:
    model = _attention(depth=8)
    model.functions.clear()
    with pytest.raises(ExportError, match=r"no form for target 'cpu'.*no function body"):
        lower(model, CPU)


def test_a_precision_that_the_target_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="target 'cpu': precision 'fp16' expected one of fp32"):
        lower(_attention(depth=16), CPU, precision="fp16")


def test_the_table_covers_every_operator_and_target() -> None:
    assert set(TABLE) == set(SEMANTIC_OPS)
    for op in TABLE:
        for target in TARGETS.values():
            for plugins in (True, False):
                forms = forms_for(op, target, plugins=plugins)
                assert forms
                assert set(forms) <= set(FORMS)
                assert plugins or "plugin" not in forms
    assert {target.backend for target in TARGETS.values()} <= set(BACKENDS)


def test_the_cpu_kernel_form_is_the_node_with_its_function() -> None:
    model = _sampling()
    (entry,) = lower(model, CPU)
    assert entry.form == "cpu_kernel"
    assert op_list(model) == ["MultiScaleDeformableAttention"]
    assert MSDA in model.functions


@pytest.mark.parametrize(
    ("target", "keeps"),
    [("jetson-orin-jp6", False), ("jetson-thor", True), ("h100", True), ("rtx-ada", True)],
)
def test_the_plugin_form_hides_its_function_only_where_that_would_win(
    target: str, keeps: bool
) -> None:
    model = _sampling()
    (entry,) = lower(model, TARGETS[target])
    assert entry.form == "plugin"
    assert (MSDA in model.functions) is keeps
    node = next(node for node in model.graph if node.domain == DOMAIN)
    assert node.attributes["plugin_namespace"].as_string() == "visionllm"
    assert [value.dtype for value in node.inputs if value is not None][3] == ir.DataType.FLOAT


def test_without_plugins_only_standard_operators_and_no_grid_sample_remain() -> None:
    for target in TARGETS.values():
        if target.backend == "onnxruntime":
            continue
        model = _sampling()
        (entry,) = lower(model, target, plugins=False)
        assert entry.form == "gather"
        assert {node.domain for node in model.graph} == {""}
        assert "GridSample" not in op_list(model)
        assert DOMAIN not in model.graph.opset_imports


def test_a_node_without_plugin_attributes_falls_to_the_next_form() -> None:
    model = _sampling()
    del model.graph[0].attributes["plugin_namespace"]
    (entry,) = lower(model, ORIN)
    assert entry.form == "gather"
    assert entry.reason.startswith("plugin refused: the node has no attribute plugin_namespace")


@pytest.mark.parametrize(("target", "opset"), [("jetson-orin-jp6", 20), ("h100", 21)])
def test_the_cache_goes_with_an_explicit_mask_at_the_opset_of_the_release(
    target: str, opset: int
) -> None:
    model = _attention(depth=8)
    (entry,) = lower(model, TARGETS[target], precision="fp32")
    assert entry.form == "cached_attention"
    assert model.graph.opset_imports[""] == opset
    ops = op_list(model)
    assert {"ScatterND", "Where", "Softmax"} <= set(ops)
    assert not {"Attention", "TensorScatter", "CastLike"} & set(ops)


@pytest.mark.parametrize(
    ("target", "form", "opset", "reason"),
    [
        ("rtx-ada", "tensor_scatter", 24, "explicit mask; the release updates the cache in place"),
        (
            "jetson-orin-jp6",
            "cached_attention",
            20,
            "tensor_scatter refused: TensorRT 10.3 has no ",
        ),
    ],
)
def test_a_cache_of_known_capacity_is_updated_in_place_where_the_release_can(
    target: str, form: str, opset: int, reason: str
) -> None:
    model = _attention(depth=8)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if (value.name or "").startswith(("past_k", "past_v", "present")):
            assert value.shape is not None
            value.shape = ir.Shape([1, 2, CAPACITY, 8])
    (entry,) = lower(model, TARGETS[target], precision="fp32", capacity=80)
    assert (entry.form, model.graph.opset_imports[""]) == (form, opset)
    assert entry.reason.startswith(reason)
    assert ("TensorScatter" in op_list(model)) is (form == "tensor_scatter")
    cache = next(value for value in model.graph.inputs if value.name == "past_key")
    assert list(cache.shape or ()) == [1, 2, 80, 8]


def test_a_form_can_be_asked_for() -> None:
    model = _attention(depth=8)
    (entry,) = lower(model, ORIN, precision="fp32", prefer={"CachedAttention": "concat"})
    assert entry.form == "concat"
    assert op_list(model).count("ScatterND") == 2


def test_the_planted_mode_slip_is_refused_on_the_way() -> None:
    model = _sampling()
    (function,) = model.functions.values()
    for node in function:
        if node.op_type == "GridSample":
            node.attributes["mode"] = ir.AttrString("mode", "linear")
    with pytest.raises(ExportError, match="GridSample with mode 'linear' at opset 19"):
        lower(model, TARGETS["rtx-ada"])


def test_an_operator_that_the_release_lacks_is_refused_by_name() -> None:
    model = _sampling()
    swish = ir.Node("", "Swish", [model.graph.outputs[0]], num_outputs=1, name="swish")
    swish.outputs[0].name, swish.outputs[0].type = "swished", model.graph.outputs[0].type
    swish.outputs[0].shape = model.graph.outputs[0].shape
    model.graph.append(swish)
    model.graph.outputs.append(swish.outputs[0])
    lower(model.clone(), TARGETS["h100"], precision="fp32")
    with pytest.raises(ExportError, match=r"'swish' \(Swish\) is not among the .*TensorRT 10.3"):
        lower(model, ORIN, precision="fp32")


def test_half_precision_reports_what_it_kept() -> None:
    model = _sampling()
    lower(model, ORIN, plugins=False)
    kept = model.meta[KEPT]
    assert kept["range"] == 0
    assert kept["widened"] >= 3
    full = _sampling()
    lower(full, ORIN, precision="fp32")
    assert KEPT not in full.meta


@pytest.mark.parametrize(
    ("precision", "kind"), [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")]
)
def test_only_the_cache_takes_the_half_type(precision: str, kind: str) -> None:
    cache: Mapping[str, tuple[int | str, ...]] = {"key": (1, 2, "C", 4)}
    ports = StagePorts(
        "llm_decoder",
        (
            Port("inputs_embeds", "float32", (1, "s", 8)),
            Port("past_length", "int64", (1,)),
            *(Port(f"past_key_values.0.{k}", "float32", s) for k, s in cache.items()),
        ),
        (
            Port("hidden", "float32", (1, "s", 8)),
            *(Port(f"present.0.{k}", "float32", s) for k, s in cache.items()),
        ),
    )
    lowered = lowered_ports(ports, ORIN, precision)
    assert [port.dtype for port in lowered.inputs] == ["float32", "int64", kind]
    assert [port.dtype for port in lowered.outputs] == ["float32", kind]
    assert lowered_ports(ports, CPU, precision) == ports


def test_the_lowered_cache_has_the_half_type() -> None:
    proto = one_node_model(heads=4, kv_heads=2, scale=0.3, batch=1, depth=8)
    model = ir.serde.deserialize_model(proto)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name in ("past_key", "past_value", "present_key", "present_value"):
            value.name = {"past": "past_key_values.0.", "present": "present.0."}[
                value.name.split("_")[0]
            ] + value.name.split("_")[1]
    lower(model, ORIN)
    types = {v.name: v.dtype for v in (*model.graph.inputs, *model.graph.outputs)}
    assert types["past_key_values.0.key"] == types["present.0.value"] == ir.DataType.FLOAT16
    assert types["query"] == types["attention"] == ir.DataType.FLOAT
    assert np.dtype(np.float16) == ir.DataType.FLOAT16.numpy()
