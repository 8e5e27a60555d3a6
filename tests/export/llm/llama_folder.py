"""Small random LLaMAs as a folder or a GGUF file, with a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.export.synthetic import write_bins, write_safetensors
from tests.export.tokenizer_files import write_tokenizer_files
from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.llm.weights import EMBEDDING, HEAD, expected_shapes

__all__ = ["SMALL", "config_json", "random_state", "write_gguf", "write_llama_folder"]

SMALL = LlmConfig(
    vocab_size=406,  # what write_tokenizer_files makes, controls included
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position_embeddings=256,
)
# Name of a layer's part -> llama.cpp's.
_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OTHERS = {EMBEDDING: "token_embd.weight", "model.norm.weight": "output_norm.weight"}


def random_state(config: LlmConfig = SMALL, seed: int = 0) -> dict[str, Tensor]:
    """float32 weights; without a head of its own where the config ties it."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in expected_shapes(config).items():
        values = torch.randn(shape, generator=generator)
        state[name] = 1 + 0.1 * values if len(shape) == 1 else values * shape[-1] ** -0.5
    if config.tie_word_embeddings:
        del state[HEAD]
    return state


def config_json(config: LlmConfig) -> dict[str, object]:
    """As Hugging Face writes it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def write_llama_folder(
    folder: Path,
    config: LlmConfig = SMALL,
    *,
    seed: int = 0,
    form: str = "safetensors",
    tokenizer: bool = True,
) -> dict[str, Tensor]:
    """Write a folder in Hugging Face's layout.

    Args:
        folder: where to.
        config: its sizes; with a tokenizer, the vocabulary size comes from that.
        seed: of the weights.
        form: "safetensors" (one file), "shards" (two) or "bin".
        tokenizer: whether to write a SentencePiece tokenizer.

    Returns:
        The weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer:
        config = replace(config, vocab_size=write_tokenizer_files(folder))
    state = random_state(config, seed)
    (folder / "config.json").write_text(json.dumps(config_json(config)), encoding="utf-8")
    if form == "bin":
        write_bins(folder, state)
    else:
        write_safetensors(folder, state, shards=form == "shards")
    return state


def interleaved(rows: NDArray[np.generic], heads: int) -> NDArray[np.generic]:
    """Rows of a query or key matrix in llama.cpp's order, as its converter puts them."""
    half = len(rows) // heads // 2
    order = [h * 2 * half + part * half + i for h in range(heads) for i in range(half)
             for part in range(2)]  # fmt: skip
    return rows[order]


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    if name == HEAD:
        return "output.weight"
    if name in _OTHERS:
        return _OTHERS[name]
    index, _, part = name.removeprefix("model.layers.").partition(".")
    return f"blk.{index}.{_PARTS[part.removesuffix('.weight')]}.weight"


def write_gguf(
    path: Path,
    rows: Mapping[str, NDArray[np.generic]],
    config: LlmConfig = SMALL,
    *,
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    settings: Mapping[str, object] | None = None,
    extra: Mapping[str, NDArray[np.generic]] | None = None,
) -> None:
    """Write a GGUF file.

    Args:
        path: where to.
        rows: by Hugging Face's name, in its row order: numbers, or the bytes of blocks.
        config: sizes for the header.
        kinds: block formats of the tensors that are given as bytes.
        settings: further fields of the header, or other values; None leaves a field out.
        extra: further tensors, by llama.cpp's name.
    """
    header: dict[str, object] = {
        "general.architecture": "llama",
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.head_dim,
        "llama.vocab_size": config.vocab_size,
        **(settings or {}),
    }
    writer = gguf.GGUFWriter(path, str(header.pop("general.architecture")))
    for key, value in header.items():
        _add_field(writer, key, value)
    for name, array in rows.items():
        if name.endswith("self_attn.q_proj.weight"):
            array = interleaved(array, config.num_attention_heads)
        elif name.endswith("self_attn.k_proj.weight"):
            array = interleaved(array, config.num_key_value_heads)
        kind = (kinds or {}).get(name)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(array), raw_dtype=kind)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_field(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)


def sentencepiece_fields(folder: Path) -> dict[str, object]:
    """Header fields of the tokenizer that `write_tokenizer_files` put into a folder."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    added = json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
    tokens, scores, kinds = [], [], []
    for i in range(pieces.get_piece_size()):
        tokens.append(pieces.id_to_piece(i))
        scores.append(float(pieces.get_score(i)))
        special = 2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 1
        kinds.append(6 if pieces.is_byte(i) else special)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*tokens, *added],
        "tokenizer.ggml.scores": [*scores, *(-1000.0 for _ in added)],
        "tokenizer.ggml.token_type": [*kinds, *(3 for _ in added)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
