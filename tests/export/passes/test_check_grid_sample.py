from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import helper

from tests.export.passes.graphs import make_model
from tests.export.passes.msda import msda_model
from tests.plugins.ms_deform_attn.test_ms_deform_attn import make_inputs
from visionllm_edge.export.passes.check_grid_sample import check_grid_sample
from visionllm_edge.runtime.errors import ExportError


def _sampled(opset: int, **attributes: str) -> ir.Model:
    return make_model(
        [helper.make_node("GridSample", ["x", "grid"], ["y"], name="sample", **attributes)],
        inputs={"x": [1, 2, 4, 4], "grid": [1, 3, 3, 2]},
        outputs={"y": [1, 2, 3, 3]},
        opset=opset,
    )


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_the_old_names_at_an_old_opset_are_fine(mode: str) -> None:
    assert check_grid_sample(_sampled(19, mode=mode)) == 1
    assert check_grid_sample(_sampled(16)) == 1


@pytest.mark.parametrize(
    ("opset", "attributes", "words"),
    [
        (20, {"mode": "linear"}, "'sample' is GridSample with mode 'linear' at opset 20"),
        (20, {}, "mode 'linear' at opset 20"),
        (20, {"mode": "nearest"}, "mode 'nearest' at opset 20"),
        (19, {"mode": "linear"}, "mode 'linear' at opset 19"),
    ],
    ids=["slip", "default", "any mode", "wrong name"],
)
def test_the_mode_slip_is_refused_by_name(
    opset: int, attributes: dict[str, str], words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        check_grid_sample(_sampled(opset, **attributes))


def test_bodies_of_functions_are_looked_into() -> None:
    model = msda_model(make_inputs([(2, 2), (1, 1)]))
    assert check_grid_sample(model) == 2
    (function,) = model.functions.values()
    function.opset_imports[""] = 20
    with pytest.raises(ExportError, match="function 'MultiScaleDeformableAttention'"):
        check_grid_sample(model)
