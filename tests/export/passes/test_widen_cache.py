"""The twin with a cache in float32: the same ends and nodes but for the cache."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.export.llm.decoder_runs import WIDE, check, in_blocks
from tests.export.passes.graphs import op_list
from visionllm_edge.export.llm.decoder_graph import decoder_graph, decoder_ports
from visionllm_edge.export.lowering import lower
from visionllm_edge.export.passes.widen_cache import widen_cache
from visionllm_edge.runtime.targets import TARGETS


def _model(cache: str) -> ir.Model:
    ones = np.ones((WIDE.num_key_value_heads, WIDE.head_dim), np.float32)
    scales = [(ones, ones)] * WIDE.num_hidden_layers if cache == "int8" else None
    weights = in_blocks(8, 32)[0]
    return decoder_graph(WIDE, weights, cache=cache, accuracy_level=1, cache_scales=scales)


def test_it_is_the_graph_that_is_built_for_float32() -> None:
    model, plain = _model("int8"), _model("float32")
    assert widen_cache(model) == WIDE.num_hidden_layers
    assert op_list(model) == op_list(plain)
    assert set(model.graph.initializers) == set(plain.graph.initializers)
    assert {key[1] for key in model.functions} == {key[1] for key in plain.functions}
    ends = {v.name: v.dtype for v in (*model.graph.inputs, *model.graph.outputs)}
    expected = decoder_ports(WIDE)
    assert ends == {
        port.name: ir.DataType.INT64 if port.dtype == "int64" else ir.DataType.FLOAT
        for port in (*expected.inputs, *expected.outputs)
    }


def test_a_lowered_one_computes_what_torch_does() -> None:
    model = _model("int8")
    lower(model, TARGETS["cpu"])
    widen_cache(model)
    check(model, in_blocks(8, 32)[1], steps={"routing": None})


def test_every_other_cache_is_left_alone() -> None:
    model = _model("float16")
    before = op_list(model)
    assert widen_cache(model) == 0
    assert op_list(model) == before
