"""The meaning of the quantised linear layer: reference, standard function, MatMulNBits function."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.plugins.cpu.nodes import run
from tests.plugins.quantized_linear.cases import make_inputs, one_node_model
from visionllm_edge.plugins.quantized_linear.onnx_function import build_function
from visionllm_edge.plugins.quantized_linear.reference import (
    dequantize,
    quantized_linear,
    round_activations,
    unpack,
)


def test_stored_bytes_by_hand() -> None:
    # 0x9F: low half 15 is the first number, 7; high half 9 the second, 1. 0x08: 0 and -8.
    four = unpack(np.array([[[0x9F, 0x08]]], dtype=np.uint8), 4)
    assert four.tolist() == [[7, 1, 0, -8]]
    eight = unpack(np.array([[[0, 128, 255]]], dtype=np.uint8), 8)
    assert eight.tolist() == [[-128, 0, 127]]
    scales = np.array([[0.5, -2.0]], dtype=np.float16)
    both = dequantize(np.array([[[0x9F], [0x08]]], dtype=np.uint8), scales, 4)
    assert both.tolist() == [[3.5, 0.5, 0.0, 16.0]]


def test_rounded_activations_by_hand() -> None:
    x = np.array([[254.0, -127.0, 1.0, 3.0, 0.0, 0.0, 1e-38, 0.0]], dtype=np.float32)
    numbers, scales = round_activations(x, 4)
    # Halves go to the even neighbour.
    assert numbers.tolist() == [[127, -64, 0, 2, 0, 0, 0, 0]]
    np.testing.assert_allclose(scales, [[2.0, 1e-38 / 127]], rtol=1e-6, atol=1e-44)


@pytest.mark.parametrize("contrib", [False, True], ids=["standard", "contrib"])
@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 64), (4, 128), (8, 32), (8, 128)])
def test_function_equals_reference(bits: int, block: int, contrib: bool) -> None:
    inputs = make_inputs(5, 256, 24, bits=bits, block=block, batch=2)
    model = one_node_model(inputs, accuracy_level=1, contrib=contrib)
    onnx.checker.check_model(model, full_check=not contrib)
    expected = quantized_linear(*inputs.values(), bits=bits, block_size=block)
    size = np.abs(expected).max()
    np.testing.assert_allclose(run(model, None, {"x": inputs["x"]}), expected, atol=2e-6 * size)


def test_the_standard_function_holds_at_its_lowest_opset() -> None:
    inputs = make_inputs(2, 64, 8, bits=4, block=16)
    model = one_node_model(inputs, opset=18, constant=False)
    expected = quantized_linear(*inputs.values(), bits=4, block_size=16)
    np.testing.assert_allclose(run(model, None, inputs), expected, rtol=1e-4, atol=1e-3)


def test_level_4_rounds_and_level_1_does_not() -> None:
    inputs = make_inputs(3, 256, 16, bits=4, block=32)
    exact = quantized_linear(*inputs.values(), bits=4, block_size=32)
    rounded = quantized_linear(*inputs.values(), bits=4, block_size=32, accuracy_level=4)
    error = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 2e-2
    model = one_node_model(inputs, accuracy_level=4, contrib=True)
    on_runtime = run(model, None, {"x": inputs["x"]})
    # ONNX Runtime rounds by a rule of its own or not at all, and stays as near.
    assert np.abs(on_runtime - exact).max() / np.abs(exact).max() < 2 * error


@pytest.mark.parametrize("opset", [17, 22])
def test_an_opset_outside_is_refused(opset: int) -> None:
    with pytest.raises(ValueError, match=rf"QuantizedLinear: opset expected 18\.\.21, got {opset}"):
        build_function(opset=opset)
