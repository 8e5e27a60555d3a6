"""LLaMA folders and the language model of a VisionLLM v2, in every file format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.export.llm.llama_folder import SMALL, config_json, random_state, write_llama_folder
from tests.export.llm.packed_folder import GROUP, METHODS, write_packed_folder
from tests.export.small_checkpoint import write_small_checkpoint
from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.llm.hf_folder import LlamaFolder, VisionLLMWeights
from visionllm_edge.export.llm.weights import EMBEDDING, HEAD, expected_shapes, open_llm
from visionllm_edge.runtime.errors import CheckpointError, ConfigError

GATE = "model.layers.1.mlp.gate_proj.weight"


def write_config(folder: Path, **changes: object) -> None:
    data = {**config_json(SMALL), **changes}
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin"])
def test_every_file_format_gives_the_same(form: str, tmp_path: Path) -> None:
    state = write_llama_folder(tmp_path / "m", form=form, tokenizer=False)
    weights = open_llm(tmp_path / "m")
    assert isinstance(weights, LlamaFolder)
    assert (weights.name, weights.config) == ("m", SMALL)
    assert weights.names() == tuple(expected_shapes(SMALL))
    for name, tensor in state.items():
        assert torch.equal(weights.tensor(name), tensor), name
        assert weights.quantized(name) is None
    with pytest.raises(KeyError):
        weights.tensor("model.layers.2.mlp.gate_proj.weight")
    plain = tmp_path / "plain"
    write_llama_folder(plain, tokenizer=False)
    assert weights.fingerprint() == open_llm(plain).fingerprint()


def test_stored_type_is_kept(tmp_path: Path) -> None:
    write_config(tmp_path)
    halves = {name: tensor.bfloat16() for name, tensor in random_state().items()}
    save_file(halves, tmp_path / "model.safetensors")
    assert torch.equal(open_llm(tmp_path).tensor(GATE), halves[GATE])


def test_fingerprint_follows_weights_and_constants(tmp_path: Path) -> None:
    write_llama_folder(tmp_path, tokenizer=False)
    seen = {open_llm(tmp_path).fingerprint()}
    write_config(tmp_path, rope_theta=5e5)
    seen.add(open_llm(tmp_path).fingerprint())
    write_llama_folder(tmp_path, tokenizer=False, seed=1)
    seen.add(open_llm(tmp_path).fingerprint())
    assert len(seen) == 3


@pytest.mark.parametrize("stored", [False, True])
def test_tied_head(stored: bool, tmp_path: Path) -> None:
    """A copy of the table that is stored as the head has no say."""
    tied = replace(SMALL, tie_word_embeddings=True)
    state = random_state(tied)
    write_config(tmp_path, tie_word_embeddings=True)
    head = {HEAD: torch.zeros(SMALL.vocab_size, SMALL.hidden_size)} if stored else {}
    save_file(state | head, tmp_path / "model.safetensors")
    weights = open_llm(tmp_path)
    assert weights.config == tied
    assert HEAD in weights.names()
    assert torch.equal(weights.tensor(HEAD), state[EMBEDDING])


def test_heads_of_another_width(tmp_path: Path) -> None:
    wide = replace(SMALL, head_dim=24)
    write_llama_folder(tmp_path, wide, tokenizer=False)
    weights = open_llm(tmp_path)
    assert weights.config.head_dim == 24
    assert weights.tensor("model.layers.0.self_attn.o_proj.weight").shape == (64, 96)


def test_defaults_are_those_of_hugging_face(tmp_path: Path) -> None:
    write_llama_folder(tmp_path, tokenizer=False)
    data = config_json(SMALL)
    for field in ("rms_norm_eps", "rope_theta", "max_position_embeddings", "head_dim"):
        del data[field]
    (tmp_path / "config.json").write_text(json.dumps(data), encoding="utf-8")
    config = open_llm(tmp_path).config
    assert (config.rms_norm_eps, config.rope_theta) == (1e-6, 10000.0)
    assert (config.max_position_embeddings, config.head_dim) == (2048, 16)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("model_type", "mistral", r"model_type: expected 'visionllmv2' or 'llama', got 'mistral'"),
        ("model_type", None, r"model_type: expected 'visionllmv2' or 'llama', got None"),
        ("rope_scaling", {"rope_type": "llama3"}, r"rope_scaling: expected None, got .*llama3"),
        ("rope_parameters", {"rope_type": "yarn"}, r"rope_parameters\.rope_type: .*got 'yarn'"),
        ("attention_bias", True, r"attention_bias: expected False, got True.*without biases"),
        ("hidden_act", "gelu", r"hidden_act: expected 'silu'"),
        ("num_key_value_heads", 3, r"num_attention_heads: .*num_key_value_heads \(3\), got 4"),
        ("head_dim", 15, r"head_dim: expected an even number.*got 15"),
        ("vocab_size", "x", r"vocab_size: expected a positive integer, got 'x'"),
    ],
)
def test_unsupported_configs_are_refused_by_field(
    field: str, value: object, named: str, tmp_path: Path
) -> None:
    write_config(tmp_path, **{field: value})
    with pytest.raises(ConfigError, match=rf"config\.json: {named}"):
        open_llm(tmp_path)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write_config(tmp_path)
    state = random_state()
    del state[GATE]
    state["model.norm.weight"] = torch.ones(63)
    state["model.layers.0.self_attn.q_proj.bias"] = torch.ones(64)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)  # old files have it
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        open_llm(tmp_path)
    text = str(error.value)
    assert f"1 missing: {GATE}" in text
    assert "1 mis-shaped: model.norm.weight (expected [64], got [63])" in text
    assert "1 unknown: model.layers.0.self_attn.q_proj.bias" in text


def test_a_missing_head_is_not_taken_for_a_tied_one(tmp_path: Path) -> None:
    write_config(tmp_path)
    state = random_state()
    del state[HEAD]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing: lm_head\.weight"):
        open_llm(tmp_path)


def test_only_plain_tensors_are_loaded(tmp_path: Path) -> None:
    write_config(tmp_path)
    hostile: dict[str, Any] = {**random_state(), "x": LlmConfig}
    torch.save(hostile, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only tensors are accepted"):
        open_llm(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a folder, found nothing"):
        open_llm(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        open_llm(tmp_path)


def test_language_model_of_a_visionllm(tmp_path: Path) -> None:
    write_small_checkpoint(tmp_path)
    weights = open_llm(tmp_path)
    assert isinstance(weights, VisionLLMWeights)
    checkpoint = weights.checkpoint
    assert weights.config == checkpoint.config.llm
    assert set(weights.names()) == set(expected_shapes(weights.config))
    for name in weights.names():
        assert torch.equal(weights.tensor(name), checkpoint.tensor(f"llm.{name}"))
        assert weights.quantized(name) is None
    assert weights.fingerprint() == VisionLLMWeights(checkpoint).fingerprint()
    with pytest.raises(KeyError):
        weights.quantized("model.layers.9.mlp.gate_proj.weight")


@pytest.mark.parametrize("method", METHODS)
def test_packed_matrices(method: str, tmp_path: Path) -> None:
    truth = write_packed_folder(tmp_path, method)
    weights = open_llm(tmp_path)
    for name, expected in truth.items():
        blocks = weights.quantized(name)
        plain = expected.ndim == 1 or name in (EMBEDDING, HEAD)
        assert (blocks is None) == plain, name
        if blocks is None:
            assert torch.equal(weights.tensor(name), expected)
            continue
        assert (blocks.bits, blocks.block_size) == (4, GROUP)
        assert (blocks.zero_offset is None) == (method == "compressed-tensors")
        # float16 holds a zero point's offset (up to 4 steps of up to 0.02) to 2**-15.
        torch.testing.assert_close(weights.tensor(name), expected, rtol=1e-6, atol=2.0**-15)


def test_a_packed_part_that_is_missing_is_named(tmp_path: Path) -> None:
    write_packed_folder(tmp_path, "awq")
    stored = load_file(tmp_path / "model.safetensors")
    del stored[GATE.replace("weight", "qzeros")]
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing: model.*gate_proj\.qzeros"):
        open_llm(tmp_path)


@pytest.mark.parametrize("rows", [48, 0])
def test_a_packed_matrix_of_another_size_is_named(rows: int, tmp_path: Path) -> None:
    write_packed_folder(tmp_path, "awq")
    stored = load_file(tmp_path / "model.safetensors")
    for ending, kept in (("qweight", rows // 8), ("qzeros", rows // 8), ("scales", rows)):
        key = GATE.replace("weight", ending)
        stored[key] = stored[key][:, :kept].contiguous() if rows else stored[key].flatten()
    save_file(stored, tmp_path / "model.safetensors")
    weights = open_llm(tmp_path)
    with pytest.raises(CheckpointError, match=r"gate_proj\.weight: expected .*\[96, 64\]"):
        weights.tensor(GATE)


@pytest.mark.parametrize("field", ["quantization_config", "compression_config"])
def test_packings_that_are_not_read_are_refused(field: str, tmp_path: Path) -> None:
    write_llama_folder(tmp_path, tokenizer=False)
    write_config(tmp_path, **{field: {"quant_method": "bitsandbytes"}})
    with pytest.raises(ConfigError, match=r"quant_method: expected 'awq' .*got 'bitsandbytes'"):
        open_llm(tmp_path)
    write_config(tmp_path, **{field: "awq"})
    with pytest.raises(ConfigError, match=rf"{field}: expected an object, got 'awq'"):
        open_llm(tmp_path)


def test_fingerprint_follows_how_it_is_packed(tmp_path: Path) -> None:
    """The same words mean other numbers where zeros are stored as they are."""
    write_packed_folder(tmp_path, "gptq")
    first = open_llm(tmp_path)
    other = {**METHODS["gptq"], "checkpoint_format": "gptq_v2"}
    write_config(tmp_path, quantization_config=other)
    second = open_llm(tmp_path)
    assert not torch.equal(first.tensor(GATE), second.tensor(GATE))
    assert first.fingerprint() != second.fingerprint()
