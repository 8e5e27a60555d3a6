import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from visionllm_edge.export.quantize.matrix import (
    BlockQuantized,
    pack,
    quantize_blocks,
    round_blocks,
    unpack,
)


def _matrix(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_code_survives_packing(bits: int) -> None:
    low, high = (-8, 8) if bits == 4 else (-128, 128)
    codes = np.arange(low, high, dtype=np.int8).reshape(2, -1)
    stored = pack(codes, bits)
    assert stored.dtype == np.uint8 and stored.shape == (2, codes.shape[1] * bits // 8)
    assert np.array_equal(unpack(stored, bits), codes)


def test_low_half_of_a_byte_is_the_even_column() -> None:
    assert pack(np.array([[-8, 7]], np.int8), 4).tolist() == [[0xF0]]
    assert pack(np.array([[-127, 127]], np.int8), 8).tolist() == [[1, 255]]


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 128), (8, 32), (8, 64)])
def test_onnx_runtime_reads_the_layout(bits: int, block: int) -> None:
    rows, columns = 48, 256
    matrix = quantize_blocks(_matrix(rows, columns), bits, block)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft",
        K=columns, N=rows, bits=bits, block_size=block, accuracy_level=1,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, rows])],
        [
            numpy_helper.from_array(matrix.weight, "w"),
            numpy_helper.from_array(matrix.scales.astype(np.float32), "s"),
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    x = _matrix(5, columns, seed=1)
    (y,) = session.run(None, {"x": x})
    np.testing.assert_allclose(y, x @ matrix.dequantize().T, atol=2e-4)


def test_error_is_at_most_half_a_step_where_nothing_is_clipped() -> None:
    weight = _matrix(64, 256)
    matrix = quantize_blocks(weight, 8, 32)
    step = np.repeat(matrix.scales.astype(np.float32), 32, axis=1)
    # The scale is rounded to float16, so the code of the largest weight may be cut by 127 * 2^-11.
    assert (np.abs(matrix.dequantize() - weight) <= 0.57 * step).all()


def test_scale_is_chosen_as_float16_stores_it() -> None:
    # 0.37/7 lies between two float16; codes must be made with the stored one.
    weight = np.full((1, 32), 0.37, np.float32)
    codes, scales = round_blocks(weight.reshape(1, 1, 32), 4)
    stored = codes * scales[..., None].astype(np.float32)
    best = min(
        abs(float(q) * float(np.float16(0.37 / d)) - 0.37)
        for d in (7.0, 7.5, 8.0, 8.5, 9.0)
        for q in range(-8, 8)
    )
    assert abs(float(stored.flat[0]) - 0.37) == pytest.approx(best, abs=1e-7)


def test_minus_eight_is_used_where_it_helps() -> None:
    step = np.float32(0.125)
    block = (np.arange(-8, 8, dtype=np.float32) * step).repeat(2).reshape(1, 32)
    matrix = quantize_blocks(block, 4, 32)
    np.testing.assert_array_equal(matrix.dequantize(), block)  # 7 alone could not do this
    assert (unpack(matrix.weight, 4) == -8).any()


def test_the_choice_beats_each_single_divisor() -> None:
    weight = _matrix(200, 128)
    blocks = weight.reshape(200, 4, 32)
    ours = np.square(quantize_blocks(weight, 4, 32).dequantize() - weight).sum()
    for divisor in (7.0, 8.0):
        scale = np.abs(blocks).max(axis=-1, keepdims=True) / divisor
        plain = np.clip(np.rint(blocks / scale), -8, 7) * scale
        assert ours < 0.95 * np.square(plain - blocks).sum()


def test_scales_stay_above_zero() -> None:
    weight = np.zeros((2, 64), np.float32)
    weight[1, 40] = 1e-9
    for bits in (4, 8):
        matrix = quantize_blocks(weight, bits, 32)
        assert (matrix.scales > 0).all()
        assert np.abs(matrix.dequantize()).max() == 0


def test_products_make_the_error_of_the_output_smaller() -> None:
    rng = np.random.default_rng(3)
    weight = _matrix(64, 128)
    x = rng.standard_normal((500, 128)).astype(np.float32)
    x *= rng.lognormal(0, 1.5, 128).astype(np.float32)  # a few channels are much larger
    blocks = x.reshape(500, 4, 32)
    products = np.einsum("rbk,rbl->bkl", blocks, blocks) / 500

    def error(products: NDArray[np.float32] | None) -> float:
        difference = quantize_blocks(weight, 4, 32, products).dequantize() - weight
        outputs = np.einsum("rbk,nbk->rnb", blocks, difference.reshape(64, 4, 32))
        return float(np.square(outputs).sum())

    assert error(products) < 0.85 * error(None)


def test_stack_keeps_every_part_and_fills_missing_offsets() -> None:
    plain = quantize_blocks(_matrix(3, 64), 4, 32)
    offset = np.full((2, 2), 0.25, np.float16)
    other = quantize_blocks(_matrix(2, 64, seed=1), 4, 32)
    shifted = BlockQuantized(other.weight, other.scales, 4, 32, offset)
    np.testing.assert_allclose(shifted.dequantize(), other.dequantize() + 0.25)
    both = BlockQuantized.stack([plain, shifted])
    assert both.zero_offset is not None and both.rows == 5
    expected = np.concatenate([plain.dequantize(), shifted.dequantize()])
    np.testing.assert_array_equal(both.dequantize(), expected)
    with pytest.raises(AssertionError, match="different kinds"):
        BlockQuantized.stack([plain, quantize_blocks(_matrix(2, 64), 8, 32)])


def test_chunks_do_not_show() -> None:
    weight = _matrix(3000, 128)  # more than one chunk
    matrix = quantize_blocks(weight, 4, 32)
    tail = quantize_blocks(weight[-7:], 4, 32)
    assert np.array_equal(matrix.weight[-7:], tail.weight)
    assert np.array_equal(matrix.scales[-7:], tail.scales)
