from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tests.export.passes.graphs import op_list
from tests.plugins.cached_attention.cases import one_node_model
from visionllm_edge.export.passes.append_functions import append_functions
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.errors import ExportError

_MSDA = "MultiScaleDeformableAttention"


def _msda_model(*levels: int | str, opset: int = 19, op: str = _MSDA) -> ir.Model:
    """One deformable-attention node per number of levels."""
    nodes, inputs, outputs = [], [], []
    for k, count in enumerate(levels):
        names = [f"{name}{k}" for name in ("value", "shapes", "starts", "locations", "weights")]
        nodes.append(helper.make_node(op, names, [f"y{k}"], domain=DOMAIN, name=f"node{k}"))
        shapes: list[list[Any]] = [
            [1, 5, 2, 4],
            [count, 2],
            [count],
            [1, 3, 2, count, 2, 2],
            [1, 3, 2, count, 2],
        ]
        kinds = [TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT32] + [TensorProto.FLOAT] * 2
        inputs += [
            helper.make_tensor_value_info(n, kind, s)
            for n, kind, s in zip(names, kinds, shapes, strict=True)
        ]
        outputs.append(helper.make_tensor_value_info(f"y{k}", TensorProto.FLOAT, [1, 3, 2, 4]))
    graph = helper.make_graph(nodes, "test", inputs, outputs)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets, ir_version=9))


def _grid_samples(model: ir.Model) -> int:
    function = model.functions[(DOMAIN, _MSDA, "")]
    return sum(node.op_type == "GridSample" for node in function)


@pytest.mark.parametrize("levels", [1, 4])
def test_one_function_unrolled_for_the_levels_of_the_nodes(levels: int) -> None:
    model = _msda_model(levels, levels)
    assert append_functions(model) == 1
    assert op_list(model) == [_MSDA, _MSDA]
    assert _grid_samples(model) == levels
    assert append_functions(model) == 0


def test_sampling_is_written_bilinear() -> None:
    model = _msda_model(2)
    append_functions(model)
    for node in model.functions[(DOMAIN, _MSDA, "")]:
        if node.op_type == "GridSample":
            assert node.attributes["mode"].as_string() == "bilinear"


def test_cached_attention_gets_its_function() -> None:
    proto = one_node_model(heads=4, kv_heads=2, scale=0.3)
    del proto.functions[:]
    model = ir.serde.deserialize_model(proto)
    assert append_functions(model) == 1
    assert (DOMAIN, "CachedAttention", "") in model.functions


def test_graphs_without_our_operators_get_nothing() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
    graph = helper.make_graph([node], "test", value[:1], value[1:])
    model = ir.serde.deserialize_model(helper.make_model(graph))
    assert append_functions(model) == 0
    assert DOMAIN not in model.graph.opset_imports


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_msda_model(4, op="NoSuchOperator"), "NoSuchOperator, expected one of"),
        (_msda_model(4, 3), "another node one for"),
        (_msda_model("L"), "fixed number of levels"),
        (_msda_model(4, opset=20), r"opset expected 18\.\.19, got 20"),
    ],
    ids=["unknown operator", "two bodies", "levels unknown", "opset TensorRT misreads"],
)
def test_refusals(model: ir.Model, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        append_functions(model)


def test_numbers_of_the_appended_function() -> None:
    # Covered operator by operator in tests/plugins; here: the function belongs to the node.
    import onnxruntime as ort

    model = _msda_model(1)
    append_functions(model)
    session = ort.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    value = np.random.default_rng(0).standard_normal((1, 5, 2, 4), dtype=np.float32)
    feeds = {
        "value0": value,
        "shapes0": np.array([[1, 5]], np.int32),
        "starts0": np.zeros(1, np.int32),
        # The centre of pixel 3, with all weight on one point.
        "locations0": np.broadcast_to(np.array([0.7, 0.5], np.float32), (1, 3, 2, 1, 2, 2)).copy(),
        "weights0": np.broadcast_to(np.array([1.0, 0.0], np.float32), (1, 3, 2, 1, 2)).copy(),
    }
    (got,) = session.run(None, feeds)
    np.testing.assert_allclose(got, np.repeat(value[:, 3:4], 3, axis=1), atol=1e-6)
