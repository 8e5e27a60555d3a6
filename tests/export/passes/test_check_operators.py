from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from tests.export.passes.graphs import make_model
from tests.export.passes.msda import msda_model
from tests.plugins.ms_deform_attn.test_ms_deform_attn import make_inputs
from visionllm_edge.export.passes.check_operators import check_operators
from visionllm_edge.runtime.errors import ExportError
from visionllm_edge.runtime.releases import RELEASES, Release, release_of

OLD = release_of("tensorrt", "10.3")
NEW = release_of("tensorrt", "11.4")
RTX = release_of("tensorrt_rtx", "1.7")


def _one(
    op: str,
    inputs: Sequence[str] = ("x",),
    *,
    opset: int = 19,
    constants: dict[str, Any] | None = None,
    domain: str = "",
    **attributes: Any,
) -> ir.Model:
    given = {name: [1, 2, 4, 4] for name in inputs if name and name not in (constants or {})}
    return make_model(
        [helper.make_node(op, list(inputs), ["y"], name="bad", domain=domain, **attributes)],
        inputs=given,
        outputs={"y": None},
        constants=constants,
        opset=opset,
        domains={domain: 1} if domain else None,
    )


def test_ordinary_operators_pass_everywhere() -> None:
    for release in RELEASES.values():
        count = check_operators(_one("Relu"), release)
        assert count == (0 if release.operators is None else 1)


@pytest.mark.parametrize(
    ("model", "release", "words"),
    [
        (_one("NonZero"), RTX, r"'bad' \(NonZero\) is not among the operators of TensorRT-RTX 1.7"),
        (_one("Relu", opset=21), OLD, "is of opset 21, TensorRT 10.3 takes 20"),
        (_one("Attention", ["x"] * 3, opset=20), OLD, "not among the operators of TensorRT 10.3"),
        (
            _one("Attention", ["x"] * 3, opset=23, is_causal=1),
            NEW,
            "reads as upper_left or drops. Give it an explicit mask",
        ),
        (
            _one("Attention", ["x", "x", "x", "", "x", "x"], opset=23),
            RTX,
            "causal flag or cache inputs",
        ),
        (
            _one("TopK", ["x", "k"], constants={"k": np.array([3840], np.int64)}),
            OLD,
            "takes 3840, TensorRT 10.3 at most 3839",
        ),
        (_one("ScatterND", ["x"] * 3, reduction="add"), OLD, "reduces"),
        (_one("Resize", ["x"], antialias=1), RTX, "antialias"),
        (_one("GroupQueryAttention", domain="com.microsoft"), RTX, "domain 'com.microsoft'"),
        (_one("MultiScaleDeformableAttention", domain="visionllm"), NEW, "neither a function nor"),
    ],
    ids=["operator", "opset", "no attention", "causal", "past", "topk", "scatter", "resize",
         "domain", "no body"],
)  # fmt: skip
def test_refusals_name_node_and_release(model: ir.Model, release: Release, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        check_operators(model, release)


def test_what_one_release_lacks_another_has() -> None:
    swish = _one("Swish", opset=24)
    assert check_operators(swish, NEW) == 1
    with pytest.raises(ExportError, match="opset 24"):
        check_operators(swish, OLD)


def test_attention_with_an_explicit_mask_passes() -> None:
    assert check_operators(_one("Attention", ["x"] * 4, opset=23), NEW) == 1


def test_sampling_in_a_type_without_a_kernel_is_refused() -> None:
    model = _one("GridSample", ["x", "grid"])
    for value in model.graph.inputs:
        value.dtype = ir.DataType.BFLOAT16
    assert check_operators(model, RTX) == 1
    with pytest.raises(ExportError, match=r"types bf16, bf16; TensorRT 11\.4 wants one of fp32"):
        check_operators(model, NEW)
    model.graph.inputs[1].dtype = ir.DataType.FLOAT
    with pytest.raises(ExportError, match="wants one of fp32, fp16, bf16 for both"):
        check_operators(model, RTX)


def test_the_plugin_form_needs_no_function() -> None:
    model = msda_model(make_inputs([(2, 2)]))
    model.functions.clear()
    assert check_operators(model, OLD, plugins=["MultiScaleDeformableAttention"]) == 1


def test_an_inner_name_that_stands_outside_is_refused_where_it_is_captured() -> None:
    model = msda_model(make_inputs([(2, 2)]))
    (function,) = model.functions.values()
    inner = function.graph[0].outputs[0].name
    model.graph.inputs[0].name = inner
    assert check_operators(model, NEW)
    with pytest.raises(ExportError, match=f"inner name '{inner}' also stands outside"):
        check_operators(model, OLD)


def test_a_function_body_is_looked_into() -> None:
    model = msda_model(make_inputs([(2, 2)]))
    (function,) = model.functions.values()
    node = onnx.helper.make_node("NonZero", ["msda_value"], ["msda_bad"], name="inside")
    given = {"msda_value": function.inputs[0]}
    function.append(ir.Node("", node.op_type, [given["msda_value"]], num_outputs=1, name="inside"))
    with pytest.raises(ExportError, match=r"function 'MultiScale.*'inside' \(NonZero\)"):
        check_operators(model, NEW)
