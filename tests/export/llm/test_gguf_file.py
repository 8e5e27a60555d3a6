"""A GGUF file gives the weights that went into it, in every block format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from tests.export.llm.llama_folder import SMALL, random_state, write_gguf
from visionllm_edge.export.llm import gguf_file
from visionllm_edge.export.llm.gguf_file import GgufWeights
from visionllm_edge.export.llm.weights import EMBEDDING, HEAD, expected_shapes, open_llm
from visionllm_edge.runtime.errors import CheckpointError, ConfigError

# Blocks of up to 256 numbers.
WIDE = replace(SMALL, vocab_size=40, hidden_size=256, intermediate_size=512, head_dim=64)
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
K_PROJ = "model.layers.0.self_attn.k_proj.weight"
# Where a block format keeps its float16 factors, bytes from the start of a block.
FACTORS = {
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


def arrays(config: object = SMALL) -> dict[str, NDArray[np.generic]]:
    assert isinstance(config, type(SMALL))
    return {name: tensor.numpy() for name, tensor in random_state(config).items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write_gguf(path, arrays())
    return path


def blocks(kind: Kind, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.generic]:
    """Bytes of a matrix in a block format: quantised, or any bytes with sensible factors."""
    size, width = gguf.GGML_QUANT_SIZES[kind]
    if kind.name not in FACTORS:
        normal = rng.standard_normal(shape).astype(np.float32)
        made: NDArray[np.generic] = gguf.quantize(normal, kind)
        return made
    out = rng.integers(0, 256, (shape[0], shape[1] // size, width), np.uint8)
    for start in FACTORS[kind.name]:
        factors = rng.uniform(-0.01, 0.01, out.shape[:2]).astype(np.float16)
        out[..., start : start + 2] = factors[..., None].view(np.uint8)
    return out.reshape(shape[0], -1)


def test_names_config_and_numbers(plain: Path) -> None:
    weights = open_llm(plain)
    assert isinstance(weights, GgufWeights)
    assert weights.name == "small"
    assert weights.config == SMALL  # eps too: stored as float32, meant as 1e-05
    assert set(weights.names()) == set(expected_shapes(SMALL))
    for name, tensor in random_state().items():
        assert torch.equal(weights.tensor(name), tensor), name
        assert weights.quantized(name) is None
    with pytest.raises(KeyError):
        weights.tensor("model.layers.2.mlp.up_proj.weight")


def test_rows_of_queries_and_keys_are_not_as_stored(plain: Path) -> None:
    """The file's own order is another one, so reading it without a change would be wrong."""
    stored = {t.name: np.array(t.data) for t in gguf.GGUFReader(plain).tensors}
    weights = open_llm(plain)
    assert not np.array_equal(stored["blk.1.attn_q.weight"], weights.tensor(Q_PROJ).numpy())
    assert not np.array_equal(stored["blk.0.attn_k.weight"], weights.tensor(K_PROJ).numpy())


def test_half_types_stay_as_stored(tmp_path: Path) -> None:
    rows = arrays()
    halves = {**rows, Q_PROJ: rows[Q_PROJ].astype(np.float16)}
    halves[K_PROJ] = gguf.quantize(rows[K_PROJ].astype(np.float32), Kind.BF16)
    write_gguf(tmp_path / "half.gguf", halves, kinds={K_PROJ: Kind.BF16})
    weights = open_llm(tmp_path / "half.gguf")
    state = random_state()
    assert torch.equal(weights.tensor(Q_PROJ), state[Q_PROJ].half())
    assert torch.equal(weights.tensor(K_PROJ), state[K_PROJ].bfloat16())


@pytest.mark.parametrize(
    "kind",
    ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"],
)
def test_block_formats(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "_SLAB", 256 * 100)  # several slabs, the last one shorter
    rng = np.random.default_rng(1)
    rows, shapes = arrays(WIDE), expected_shapes(WIDE)
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    kinds = dict.fromkeys(matrices, Kind[kind])
    rows |= {name: blocks(Kind[kind], shapes[name], rng) for name in matrices}
    write_gguf(tmp_path / "blocks.gguf", rows, WIDE, kinds=kinds)
    weights = open_llm(tmp_path / "blocks.gguf")
    for name in matrices:
        expected = gguf.dequantize(np.asarray(rows[name]), Kind[kind])
        assert np.isfinite(expected).all() and expected.std() > 0
        found = weights.tensor(name)
        assert found.dtype == torch.float32
        assert np.array_equal(found.numpy(), expected), name
        exact = weights.quantized(name)
        assert (exact is not None) == (kind in ("Q4_0", "Q8_0"))
        if exact is not None:
            assert (exact.bits, exact.block_size) == (4 if kind == "Q4_0" else 8, 32)
            assert np.array_equal(exact.dequantize(), expected), name
        kept = weights.quantized(name, minimums=True)
        assert (kept is not None) == (kind in ("Q4_0", "Q8_0", "Q4_1"))
        assert kept is None or (kept.zero_offset is not None) == (kind == "Q4_1")


def by_hand(block: NDArray[np.uint8], kind: str) -> list[float]:
    """One block of 32 by ggml's definition."""
    scale = float(block[:2].view(np.float16)[0])
    if kind == "Q8_0":
        return [scale * int(code) for code in block[2:].view(np.int8)]
    low, high = [int(b) & 15 for b in block[-16:]], [int(b) >> 4 for b in block[-16:]]
    if kind == "Q4_0":
        return [scale * (code - 8) for code in low + high]
    return [scale * code + float(block[2:4].view(np.float16)[0]) for code in low + high]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_block_formats_by_hand(kind: str, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    rows = arrays() | {name: blocks(Kind[kind], (64, 96), np.random.default_rng(2))}
    write_gguf(tmp_path / "one.gguf", rows, kinds={name: Kind[kind]})
    found = open_llm(tmp_path / "one.gguf").tensor(name).numpy()
    width = gguf.GGML_QUANT_SIZES[Kind[kind]][1]
    for row, column in ((0, 0), (17, 1), (63, 2)):
        block = np.asarray(rows[name])[row, column * width : (column + 1) * width]
        expected = by_hand(np.ascontiguousarray(block).view(np.uint8), kind)
        np.testing.assert_allclose(
            found[row, column * 32 : (column + 1) * 32], expected, rtol=1e-6, atol=1e-7
        )


def test_a_minimum_becomes_an_offset(tmp_path: Path) -> None:
    """Codes and scales of Q4_1 are the file's; the offset alone is rounded, to float16."""
    name = "model.layers.0.mlp.down_proj.weight"
    values = np.random.default_rng(4).standard_normal((64, 96)).astype(np.float32)
    values[5, 32:64] = 0.3  # without a step
    values[6, :32] += 4  # far from the middle
    rows = arrays() | {name: gguf.quantize(values, Kind.Q4_1)}
    write_gguf(tmp_path / "one.gguf", rows, kinds={name: Kind.Q4_1})
    weights = open_llm(tmp_path / "one.gguf")
    kept = weights.quantized(name, minimums=True)
    assert kept is not None and kept.zero_offset is not None
    assert (kept.bits, kept.block_size) == (4, 32) and (kept.scales > 0).all()
    expected, found = weights.tensor(name).numpy(), kept.dequantize()
    rounding = np.repeat(np.abs(kept.zero_offset.astype(np.float32)), 32, axis=1) * 2.0**-11
    assert (np.abs(found - expected) <= rounding + 1e-6).all()
    block = np.asarray(rows[name])[17, 20:40]
    lowest = by_hand(np.ascontiguousarray(block).view(np.uint8), "Q4_1")
    np.testing.assert_allclose(found[17, 32:64], lowest, atol=1e-3)
    assert np.ptp(found[5, 32:64]) == 0


def test_a_block_of_zeros_keeps_its_value_with_a_scale_above_zero(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    for kind in ("Q4_0", "Q8_0"):
        values = np.random.default_rng(3).standard_normal((96, 64)).astype(np.float32)
        values[5, 32:] = 0
        rows = arrays() | {name: gguf.quantize(values, Kind[kind])}
        write_gguf(tmp_path / "zeros.gguf", rows, kinds={name: Kind[kind]})
        exact = open_llm(tmp_path / "zeros.gguf").quantized(name)
        assert exact is not None
        assert (exact.scales != 0).all()
        assert not exact.dequantize()[5, 32:].any()


def test_tied_head(tmp_path: Path) -> None:
    tied = replace(SMALL, tie_word_embeddings=True)
    write_gguf(tmp_path / "tied.gguf", arrays(tied), tied)
    weights = open_llm(tmp_path / "tied.gguf")
    assert weights.config == tied
    assert HEAD in weights.names()
    assert torch.equal(weights.tensor(HEAD), weights.tensor(EMBEDDING))


def test_heads_of_another_width(tmp_path: Path) -> None:
    wide = replace(SMALL, head_dim=24)
    lengths = {"llama.attention.key_length": 24, "llama.attention.value_length": 24}
    write_gguf(tmp_path / "wide.gguf", arrays(wide), wide, settings=lengths)
    weights = open_llm(tmp_path / "wide.gguf")
    assert weights.config == wide
    assert torch.equal(weights.tensor(Q_PROJ), random_state(wide)[Q_PROJ])


def test_a_sliding_window_limits_the_context(tmp_path: Path) -> None:
    settings = {"llama.attention.sliding_window": 100}
    write_gguf(tmp_path / "window.gguf", arrays(), settings=settings)
    assert open_llm(tmp_path / "window.gguf").config.max_position_embeddings == 100


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"general.architecture": "qwen2"},
            r"architecture: expected 'llama', got 'qwen2'",
        ),
        ({"llama.expert_count": 8}, r"llama\.expert_count: expected 0, got 8"),
        ({"llama.rope.scaling.type": "yarn"}, r"rope\.scaling\.type: expected 'none', got 'yarn'"),
        ({"llama.rope.dimension_count": 8}, r"rope\.dimension_count: expected 16, got 8"),
        ({"llama.attention.value_length": 8}, r"attention\.value_length: expected 16, got 8"),
        ({"llama.embedding_length": None}, r"embedding_length: expected a positive integer, got n"),
        ({"llama.context_length": None}, r"context_length: expected a positive integer, got n"),
        (
            {"llama.attention.head_count": [4, 4]},
            r"head_count: expected a positive integer",
        ),
        ({"split.count": 3}, r"split\.count: expected 0 or 1, got 3.*one file"),
    ],
)
def test_unsupported_headers_are_refused_by_field(
    settings: dict[str, object], named: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "x.gguf", arrays(), settings=settings)
    with pytest.raises(ConfigError, match=f"'x.gguf': .*{named}"):
        open_llm(tmp_path / "x.gguf")


def test_frequency_factors_are_refused(tmp_path: Path) -> None:
    extra = {"rope_freqs.weight": np.ones(8, np.float32)}
    write_gguf(tmp_path / "x.gguf", arrays(), extra=extra)
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight.*rope scaling"):
        open_llm(tmp_path / "x.gguf")


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    rows = arrays()
    del rows["model.layers.1.mlp.up_proj.weight"]
    rows["model.norm.weight"] = np.ones(63, np.float32)
    extra = {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    write_gguf(tmp_path / "x.gguf", rows, extra=extra)
    with pytest.raises(CheckpointError) as error:
        open_llm(tmp_path / "x.gguf")
    text = str(error.value)
    assert "1 missing: blk.1.ffn_up.weight" in text
    assert "output_norm.weight (expected [64], got [63])" in text
    assert "1 unknown: blk.0.attn_q.bias" in text


def test_unreadable_files(plain: Path, tmp_path: Path) -> None:
    whole = plain.read_bytes()
    for name, content in (
        ("other", b"PK\x03\x04" + whole[4:]),
        ("cut", whole[: len(whole) // 2]),
        ("header", whole[:100]),
        ("empty", b""),
    ):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"'{name}.gguf': expected a whole GGUF file"):
            open_llm(path)


def test_fingerprint(plain: Path, tmp_path: Path) -> None:
    first = open_llm(plain).fingerprint()
    write_gguf(tmp_path / "same.gguf", arrays(), settings={"general.name": "another name"})
    assert open_llm(tmp_path / "same.gguf").fingerprint() == first
    settings = {"llama.rope.freq_base": 20000.0}
    write_gguf(tmp_path / "theta.gguf", arrays(), settings=settings)
    rows = arrays()
    changed = rows["model.norm.weight"].copy()
    changed[3] = 2.0
    write_gguf(tmp_path / "norm.gguf", rows | {"model.norm.weight": changed})
    others = {open_llm(tmp_path / f"{name}.gguf").fingerprint() for name in ("theta", "norm")}
    assert len(others | {first}) == 3
