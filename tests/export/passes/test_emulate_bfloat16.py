from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import helper

from tests.export.passes.graphs import make_model, run
from visionllm_edge.export.passes.convert_precision import convert_precision
from visionllm_edge.export.passes.emulate_bfloat16 import emulate_bfloat16
from visionllm_edge.export.passes.infer_types import infer_types

BF16 = ir.DataType.BFLOAT16


def _rounded(array: np.ndarray) -> np.ndarray:
    """Round to nearest even at 8 significant bits."""
    bits = array.astype(np.float32).view(np.uint32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return (bits & 0xFFFF0000).astype(np.uint32).view(np.float32)


def _model() -> ir.Model:
    model = make_model(
        [
            helper.make_node("Mul", ["x", "w"], ["a"]),
            helper.make_node("Transpose", ["a"], ["t"], perm=[1, 0]),
            helper.make_node("Add", ["t", "t"], ["y"]),
        ],
        inputs={"x": [3, 3]},
        outputs={"y": [3, 3]},
        constants={"w": np.linspace(0.1, 1.3, 9, dtype=np.float32).reshape(3, 3)},
    )
    infer_types(model)
    return model


def test_every_result_is_rounded_and_movers_are_not() -> None:
    model = _model()
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    w = weight.numpy()
    convert_precision(model, "bf16", [])
    # Input, product and sum; the transposition only moves.
    assert emulate_bfloat16(model) == 3
    values = [v for node in model.graph for v in node.outputs if node.op_type != "Cast"]
    assert BF16 not in {value.dtype for value in values}
    x = np.random.default_rng(0).standard_normal((3, 3), dtype=np.float32)
    expected = _rounded(2 * _rounded(_rounded(x) * _rounded(w)).T)
    np.testing.assert_array_equal(run(model, {"x": x})[0], expected)
    assert float(np.abs(expected - 2 * (x * w).T).max()) > 1e-4


def test_a_half_end_is_rounded_on_the_way_in_and_keeps_its_name() -> None:
    model = _model()
    convert_precision(model, "bf16", [], half_ends={"x", "y"})
    emulate_bfloat16(model)
    ends = [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)]
    assert ends == [("x", ir.DataType.FLOAT), ("y", ir.DataType.FLOAT)]
    x = np.full((3, 3), 1.001, np.float32)
    whole = run(model, {"x": x})[0]
    np.testing.assert_array_equal(whole, run(model, {"x": _rounded(x)})[0])
