"""Each format is packed here by its definition, number by number, and read back."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from visionllm_edge.export.quantize.imports import read_scheme
from visionllm_edge.runtime.errors import CheckpointError, ConfigError

ROWS, COLUMNS, GROUP = 16, 128, 64

Ints = NDArray[np.int64]
Tensors = dict[str, Tensor]


def _words(numbers: Sequence[int], bits: int) -> int:
    """Numbers into one int32, the first in the lowest bits."""
    word = sum(int(number) << (bits * i) for i, number in enumerate(numbers))
    return word - 2**32 if word >= 2**31 else word


def _packed(numbers: Ints, bits: int, axis: int) -> Tensor:
    per = 32 // bits
    moved = np.moveaxis(numbers, axis, -1)
    out = [
        [_words(row[i : i + per], bits) for i in range(0, len(row), per)]
        for row in moved
    ]  # fmt: skip
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.array(out), -1, axis))).int()


def _numbers(bits: int, *, low_zero: int = 0) -> tuple[Ints, Ints, NDArray[np.float16]]:
    """Codes [N,K], zeros [N,K/G], scales [N,K/G]."""
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 2**bits, (ROWS, COLUMNS))
    zeros = rng.integers(low_zero, 2**bits, (ROWS, COLUMNS // GROUP))
    scales = rng.uniform(0.005, 0.02, (ROWS, COLUMNS // GROUP)).astype(np.float16)
    return codes, zeros, scales


def _plain(codes: Ints, zeros: Ints, scales: NDArray[np.float16]) -> NDArray[np.float64]:
    group = codes.shape[1] // scales.shape[1]
    return (codes - zeros.repeat(group, 1)) * scales.astype(np.float64).repeat(group, 1)


def _awq(codes: Ints, zeros: Ints, scales: NDArray[np.float16]) -> Tensors:
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def packed(numbers: Ints) -> Tensor:  # [A,N] -> [A,N/8]
        columns = [numbers[:, start : start + 8][:, order] for start in range(0, ROWS, 8)]
        return _packed(np.concatenate(columns, 1), 4, 1)

    return {
        "qweight": packed(codes.T),
        "qzeros": packed(zeros.T),
        "scales": torch.from_numpy(np.ascontiguousarray(scales.T)),
    }


def _gptq(codes: Ints, zeros: Ints, scales: NDArray[np.float16], bits: int, less: int) -> Tensors:
    return {
        "qweight": _packed(codes.T, bits, 0),
        "qzeros": _packed(zeros.T - less, bits, 1),
        "scales": torch.from_numpy(np.ascontiguousarray(scales.T)),
        "g_idx": torch.arange(COLUMNS, dtype=torch.int32) // GROUP,
    }


def _compressed(codes: Ints, zeros: Ints | None, scales: NDArray[np.float16]) -> Tensors:
    tensors = {
        "weight_packed": _packed(codes, 4, 1),
        "weight_scale": torch.from_numpy(scales),
        "weight_shape": torch.tensor(codes.shape),
    }
    if zeros is not None:
        tensors["weight_zero_point"] = _packed(zeros, 4, 0)
    return tensors


def _compressed_config(**weights: object) -> dict[str, Any]:
    settings = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": settings}},
    }


def _gptq_config(bits: int = 4, **more: object) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": GROUP, **more}


@pytest.mark.parametrize(
    ("bits", "low_zero", "config", "make"),
    [
        (4, 0, {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}, _awq),
        (4, 1, _gptq_config(), lambda c, z, s: _gptq(c, z, s, 4, 1)),
        (4, 0, _gptq_config(checkpoint_format="gptq_v2"), lambda c, z, s: _gptq(c, z, s, 4, 0)),
        (8, 1, _gptq_config(8), lambda c, z, s: _gptq(c, z, s, 8, 1)),
        (4, 0, _compressed_config(symmetric=False), _compressed),
    ],
    ids=["awq", "gptq", "gptq_v2", "gptq 8 bits", "compressed-tensors"],
)
def test_asymmetric_weights_are_what_the_format_defines(
    bits: int, low_zero: int, config: dict[str, Any], make: Callable[..., Tensors]
) -> None:
    codes, zeros, scales = _numbers(bits, low_zero=low_zero)
    blocks = read_scheme(config).matrix("m", make(codes, zeros, scales))
    assert (blocks.bits, blocks.block_size) == (bits, GROUP)
    assert blocks.zero_offset is not None
    # Exact but for the one rounding of the offset to float16.
    middle = 2 ** (bits - 1)
    offset = np.abs((middle - zeros) * scales.astype(np.float64)).repeat(GROUP, 1)
    difference = np.abs(blocks.dequantize() - _plain(codes, zeros, scales))
    assert (difference <= offset * 2.0**-11 + 1e-7).all()
    step = scales.astype(np.float64).repeat(GROUP, 1)
    assert (difference <= step / (290 if bits == 4 else 15)).all()


def test_symmetric_weights_are_exact_and_have_no_offset() -> None:
    codes, _, scales = _numbers(4)
    zeros = np.full(scales.shape, 8)
    for config, tensors in (
        (_gptq_config(), _gptq(codes, zeros, scales, 4, 1)),
        (_compressed_config(), _compressed(codes, None, scales)),
    ):
        blocks = read_scheme(config).matrix("m", tensors)
        assert blocks.zero_offset is None
        expected = _plain(codes, zeros, scales).astype(np.float32)
        np.testing.assert_array_equal(blocks.dequantize(), expected)


def test_a_scale_per_channel_becomes_blocks() -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 16, (ROWS, 320))
    scales = rng.uniform(0.01, 0.02, (ROWS, 1)).astype(np.float16)
    zeros = np.full(scales.shape, 8)
    tensors = _compressed(codes, None, scales)
    blocks = read_scheme(_compressed_config(strategy="channel")).matrix("m", tensors)
    assert blocks.block_size == 64  # the largest block up to 128 that divides 320
    np.testing.assert_array_equal(
        blocks.dequantize(), _plain(codes, zeros, scales).astype(np.float32)
    )


def test_columns_that_fill_no_word_are_cut_off() -> None:
    codes = np.random.default_rng(2).integers(0, 16, (ROWS, 48))
    scales = np.full((ROWS, 1), 0.5, np.float16)
    tensors = _compressed(codes, None, scales)
    filled = torch.cat([tensors["weight_packed"], torch.full((ROWS, 1), -1)], 1)
    tensors["weight_packed"] = filled.int()
    blocks = read_scheme(_compressed_config(strategy="channel")).matrix("m", tensors)
    assert blocks.columns == 48 and blocks.block_size == 48


def test_a_group_without_weight_gets_a_step_above_zero() -> None:
    codes, zeros, scales = _numbers(4)
    scales[3, 1] = 0
    blocks = read_scheme(_compressed_config(symmetric=False)).matrix(
        "m", _compressed(codes, zeros, scales)
    )
    assert (blocks.scales > 0).all()
    assert np.abs(blocks.dequantize()[3, GROUP:]).max() == 0


def test_scattered_groups_are_refused() -> None:
    codes, zeros, scales = _numbers(4, low_zero=1)
    tensors = _gptq(codes, zeros, scales, 4, 1)
    tensors["g_idx"] = tensors["g_idx"].flip(0)
    with pytest.raises(CheckpointError, match="matrix 'm': expected groups of consecutive inputs"):
        read_scheme(_gptq_config(desc_act=True)).matrix("m", tensors)
    scattered = _compressed(codes, None, scales)
    scattered["weight_g_idx"] = tensors["g_idx"]
    with pytest.raises(CheckpointError, match="actorder"):
        read_scheme(_compressed_config()).matrix("m", scattered)


def test_scales_that_float16_cannot_hold_are_refused() -> None:
    codes, _, scales = _numbers(4)
    tensors = _compressed(codes, None, scales)
    tensors["weight_scale"] = tensors["weight_scale"].float() * 1e-7
    with pytest.raises(CheckpointError, match=r"m\.weight_scale': expected scales that float16"):
        read_scheme(_compressed_config()).matrix("m", tensors)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method: expected 'awq' or 'gptq' or"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version: expected 'gemm'"),
        ({"quant_method": "gptq", "bits": 3}, "bits: expected 4 or 8, got 3"),
        ({"quant_method": "gptq"}, "bits: expected 4 or 8, got nothing"),
        (_compressed_config(type="float"), "weights.type: expected 'int', got 'float'"),
        ({**_compressed_config(), "format": "marlin-24"}, "format: expected 'pack-quantized'"),
    ],
)
def test_other_kinds_are_refused_by_field(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_scheme(config)
