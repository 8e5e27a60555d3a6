from __future__ import annotations

from tests.export.passes.graphs import op_list
from tests.export.passes.msda import msda_model
from tests.plugins.ms_deform_attn.test_ms_deform_attn import make_inputs
from visionllm_edge.export.passes.strip_functions import strip_functions


def test_bodies_go_and_nodes_stay_with_their_plugin_attributes() -> None:
    model = msda_model(make_inputs([(2, 2)]))
    assert strip_functions(model) == 1
    assert strip_functions(model) == 0
    assert not model.functions
    assert op_list(model) == ["MultiScaleDeformableAttention"]
    (node,) = model.graph
    assert node.attributes["plugin_namespace"].as_string() == "visionllm"
    assert node.attributes["plugin_version"].as_string() == "1"
