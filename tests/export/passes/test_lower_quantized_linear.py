"""One QuantizedLinear node in its forms: the same numbers, the bytes of the portable layout."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from tests.export.passes.graphs import op_list, run
from visionllm_edge.export.passes.append_functions import append_functions
from visionllm_edge.export.passes.drop_dead_code import drop_dead_code
from visionllm_edge.export.passes.lower_quantized_linear import (
    lower_to_dequantize_linear,
    lower_to_matmul_nbits,
    set_accuracy_level,
)
from visionllm_edge.export.quantize.matrix import BlockQuantized, pack
from visionllm_edge.plugins.semantic_op import DOMAIN


def _matrix(rows: int, columns: int, bits: int, size: int) -> BlockQuantized:
    """Every code there is, the lowest included, which rounding seldom makes."""
    rng = np.random.default_rng(rows + bits)
    low = -(1 << (bits - 1))
    codes = rng.integers(low, -low, (rows, columns // size, size)).astype(np.int8)
    codes.reshape(-1)[:2] = low, -low - 1
    scales = rng.uniform(0.01, 0.1, codes.shape[:2]).astype(np.float16)
    return BlockQuantized(pack(codes, bits), scales, bits, size)


def _model(matrix: BlockQuantized, level: int = 1) -> ir.Model:
    def value(name: str, array: NDArray[np.generic]) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype),
                        const_value=tensor)  # fmt: skip

    n, k = matrix.rows, matrix.columns
    x = ir.Value(name="x", shape=ir.Shape([1, "s", k]), type=ir.TensorType(ir.DataType.FLOAT))
    stored = [value("w", matrix.weight), value("s_", matrix.scales)]
    node = ir.node(
        "QuantizedLinear",
        [x, *stored],
        {"K": k, "N": n, "bits": matrix.bits, "block_size": matrix.block_size,
         "accuracy_level": level},
        domain=DOMAIN,
        name="linear",
    )  # fmt: skip
    (y,) = node.outputs
    y.name, y.type, y.shape = "y", x.type, ir.Shape([1, "s", n])
    graph = ir.Graph(
        [x], [y], nodes=[node], initializers=stored, opset_imports={"": 21, DOMAIN: 1}, name="one"
    )
    model = ir.Model(graph, ir_version=10)
    append_functions(model)
    return model


CASES = pytest.mark.parametrize(
    ("rows", "columns", "bits", "size"),
    [(6, 64, 4, 32), (7, 32, 4, 16), (1, 128, 4, 128), (5, 96, 8, 32), (3, 128, 8, 128)],
)


@CASES
@pytest.mark.parametrize("form", ["function", "matmul_nbits", "dequantize_linear", "widened"])
def test_every_form_multiplies_by_the_dequantised_weights(
    form: str, rows: int, columns: int, bits: int, size: int
) -> None:
    matrix = _matrix(rows, columns, bits, size)
    model = _model(matrix)
    node = model.graph[0]
    if form == "matmul_nbits":
        assert lower_to_matmul_nbits(model, node) is None
        assert op_list(model) == ["QuantizedLinear"]
        (body,) = model.functions.values()
        assert [n.op_type for n in body] == ["Cast", "MatMulNBits"]
    elif form != "function":
        assert lower_to_dequantize_linear(model, node, widen=form == "widened") is None
        drop_dead_code(model)
        assert op_list(model) == ["DequantizeLinear", "MatMul"]
        assert {value.name for value in model.graph.initializers.values()} == {
            f"w.int{8 if form == 'widened' else bits}",
            "s_.columns",
        }
    x = np.random.default_rng(3).standard_normal((1, 5, columns), dtype=np.float32)
    (got,) = run(model, {"x": x})
    np.testing.assert_allclose(got, x @ matrix.dequantize().T, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("rows", [4, 5])
def test_the_portable_bytes_hold_two_outputs_each_the_even_one_low(rows: int) -> None:
    matrix = _matrix(rows, 32, 4, 32)
    model = _model(matrix)
    assert lower_to_dequantize_linear(model, model.graph[0]) is None
    tensor = model.graph.initializers["w.int4"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert (tensor.dtype, tensor.nbytes) == (ir.DataType.INT4, rows * 16)
    codes = np.round(matrix.dequantize() / matrix.scales[:, :1].astype(np.float32)).astype(np.int8)
    flat = codes.T.reshape(-1) & 15
    np.testing.assert_array_equal(
        np.frombuffer(tensor.tobytes(), np.uint8), (flat[0::2] | flat[1::2] << 4).astype(np.uint8)
    )
    np.testing.assert_array_equal(tensor.numpy().astype(np.int8), codes.T)


def test_computed_weights_are_refused() -> None:
    model = _model(_matrix(4, 32, 4, 32))
    node = model.graph[0]
    copied = ir.node("Identity", [node.inputs[1]], name="copied")
    model.graph.insert_before(node, copied)
    node.replace_input_with(1, copied.outputs[0])
    assert lower_to_dequantize_linear(model, node) == "its weights are no initializers"
    assert op_list(model) == ["Identity", "QuantizedLinear"]


def test_a_node_without_a_function_is_refused() -> None:
    model = _model(_matrix(4, 32, 4, 32))
    model.functions.clear()
    assert lower_to_matmul_nbits(model, model.graph[0]) == "the model holds no function body for it"


def test_the_level_is_set_on_every_node() -> None:
    model = _model(_matrix(4, 32, 4, 32), level=4)
    assert set_accuracy_level(model, 1) == 1
    assert model.graph[0].attributes["accuracy_level"].as_int() == 1
