"""TensorRT-RTX builds every form of the decoder, with its two profiles (no GPU needed)."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.export.llm.small_llama import CONFIG
from visionllm_edge.benchmarks.real_decoder import DecoderForm, build_decoder_engine
from visionllm_edge.export.llm.decoder_weights import DenseWeights, StateDict, decoder_linears

pytestmark = [
    pytest.mark.slow,
    pytest.mark.trt,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="TensorRT-RTX is not installed: pip install 'visionllm-edge[rtx]'",
    ),
]

SIZES = dataclasses.replace(
    CONFIG, vocab_size=2048, hidden_size=512, intermediate_size=1024, num_attention_heads=8,
    head_dim=64, max_position_embeddings=256,
)  # fmt: skip
SHAPES = DenseWeights(StateDict(SIZES, {}))
WEIGHTS = sum(linear.rows * linear.columns for linear in map(SHAPES.linear, decoder_linears(SIZES)))
"""Numbers in all matrices."""


def _build(
    folder: Path, bits: int, block: int, cache: str, precision: str, target: str = "rtx-ada"
) -> dict[str, Any]:
    form = DecoderForm(bits, block, cache, precision)
    row = build_decoder_engine(SIZES, form, folder, target=target)
    onnx.checker.check_model(str(folder / "decoder.onnx"), full_check=True)
    assert row["profiles"] == ["prefill", "decode"]
    return row


@pytest.fixture(scope="module")
def sizes() -> dict[tuple[int, str], int]:
    """Bytes of the engines that were built, by bits and by how the cache is written."""
    return {}


@pytest.mark.parametrize(
    ("bits", "size", "cache", "precision"),
    [
        (0, 0, "tensor_scatter", "fp16"),
        (0, 0, "cached_attention", "fp16"),
        (0, 0, "concat", "fp16"),
        (4, 32, "tensor_scatter", "bf16"),
        (4, 32, "concat", "fp16"),
        (4, 128, "tensor_scatter", "fp16"),
        (4, 128, "inline", "fp16"),
        (8, 128, "tensor_scatter", "fp16"),
    ],
)
def test_every_form_builds_with_both_profiles(
    bits: int,
    size: int,
    cache: str,
    precision: str,
    sizes: dict[tuple[int, str], int],
    tmp_path: Path,
) -> None:
    row = _build(tmp_path, bits, size, cache, precision)
    linears = ["QuantizedLinear: dequantize_linear"] if bits else []
    attention = [f"CachedAttention: {cache}"] if cache != "inline" else []
    bytes_ = ["QuantizedCachedAttention: inline"] if cache == "inline" else []
    assert row["forms"] == [*attention, "GatedSilu: inline", *bytes_, *linears]
    assert row["opset"] == (24 if cache == "tensor_scatter" else 21)
    assert row["engine_bytes"] > WEIGHTS * (bits or 16) / 8
    if precision == "fp16":
        sizes[bits, cache] = row["engine_bytes"]


def test_the_weights_in_an_engine_stay_packed(sizes: dict[tuple[int, str], int]) -> None:
    if {(bits, "tensor_scatter") for bits in (0, 4, 8)} - sizes.keys():
        pytest.skip("the engines were not built in this run")
    dense, eight, four = (sizes[bits, "tensor_scatter"] for bits in (0, 8, 4))
    # One byte and half a byte per weight less; other kernels take some of it back.
    assert dense - eight > 0.7 * WEIGHTS
    assert eight - four > 0.3 * WEIGHTS


def test_hardware_without_four_bits_builds_bytes(tmp_path: Path) -> None:
    row = _build(tmp_path, 4, 32, "tensor_scatter", "fp16", target="rtx-turing")
    assert row["forms"][-1] == "QuantizedLinear: dequantize_linear_int8"


def test_what_an_older_release_gets_is_taken_as_well(tmp_path: Path) -> None:
    # The graph of TensorRT 10.3, parsed and built by the release that is here.
    row = _build(tmp_path, 4, 128, "tensor_scatter", "fp16", target="jetson-orin-jp6")
    assert row["opset"] == 21
    assert row["forms"][0] == "CachedAttention: cached_attention"
