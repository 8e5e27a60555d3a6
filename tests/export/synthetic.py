"""Checkpoint folders in the official layout with made-up weights, at the widths of a test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.export.official_keys import (
    DecoderWidths,
    DiffusionWidths,
    Widths,
    official_keys,
    tied_group,
)

State = dict[str, Tensor]

BIN_SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
SAFE_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def config_for(w: Widths) -> dict[str, Any]:
    """``config.json`` of a model with these widths; ``config_for(RELEASED)`` is the 7B model's."""
    return {
        "_name_or_path": "work_dirs/visionllmv2-7b-gen-edit-det/",
        "architectures": ["VisionLLMv2Model"],
        "model_type": "visionllmv2",
        "vl_bridge_type": "mlp2x_gelu",
        "vis_output_layer": -2,
        "use_pixelshuffle": False,
        "use_llm_lora": False,
        "num_embs": w.num_embs,
        "num_embs_gen": w.num_embs_gen,
        "use_region_encoder": True,
        "use_gdino": True,
        "use_unipose": True,
        "use_sd": True,
        "use_ip2p": True,
        "vis_encoder_config": {
            "model_type": "clip_vision_model",
            "hidden_size": w.vision.hidden,
            "intermediate_size": w.vision.ffn,
            "num_hidden_layers": w.vision.layers,
            "num_attention_heads": w.vision.heads,
            "image_size": w.image,
            "patch_size": w.patch,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        "llm_config": {
            "model_type": "llama",
            "vocab_size": w.vocab,
            "hidden_size": w.llm,
            "intermediate_size": w.llm_ffn,
            "num_hidden_layers": w.llm_layers,
            "num_attention_heads": w.llm_heads,
            "num_key_value_heads": w.llm_kv_heads,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
        "gdino_config": _gdino_config(w.det, w),
        "unipose_config": _unipose_config(w.pose, w),
        "sd_config": _diffusion_config(w, "stable-diffusion-v1-5", 0.1),
        "ip2p_config": _diffusion_config(w, "instruct-pix2pix", 0.05),
    }


def _unipose_config(d: DecoderWidths, w: Widths) -> dict[str, Any]:
    released = DecoderWidths()
    content: dict[str, Any] = {
        "model_type": "unipose",
        "backbone": "swin_T_224_1k",
        "return_interm_indices": [1, 2, 3],
        "hidden_dim": d.dim,
        "nheads": d.heads,
        "enc_layers": d.encoder_layers,
        "dec_layers": d.decoder_layers,
        "dim_feedforward": d.ffn,
        "num_feature_levels": d.levels,
        "enc_n_points": d.points,
        "dec_n_points": d.points,
        "num_queries": d.queries,
        "two_stage_type": "standard",
        "embed_init_tgt": True,
        "num_body_points": 68,
        "num_box_decoder_layers": 2,
        "use_text_enhancer": True,
        "use_fusion_layer": True,
        "use_text_cross_attention": True,
        "pe_temperatureH": 20,
        "pe_temperatureW": 20,
        "l_hidden_size": w.llm,
    }
    if d != released:  # the official section has no fields for other sizes than these
        content |= {"num_instances": 4, "backbone_config": _swin(d)}
    return content


def _diffusion_config(w: Widths, repository: str, drop: float) -> dict[str, Any]:
    s, released = w.sd, DiffusionWidths()
    content: dict[str, Any] = {
        "llm_hidden_size": w.llm,
        "sd_hidden_size": s.cross,
        "num_queries": s.queries,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "sd_model_id": f"checkpoints/{repository}",
        "num_embed_tokens": w.num_embs_gen,
        "cfg_drop_rate": drop,
        "cfg_scale": 7.5,
    }
    if s != released:  # as above; the rest stands in the side repositories
        content |= {
            "dim_feedforward": s.adapter_ffn,
            "unet_config": {"block_out_channels": list(s.unet), "norm_num_groups": 4},
            "vae_config": {"block_out_channels": list(s.vae), "norm_num_groups": 4},
            "text_encoder_config": {
                "vocab_size": s.text_vocab,
                "hidden_size": s.text.hidden,
                "intermediate_size": s.text.ffn,
                "num_hidden_layers": s.text.layers,
                "num_attention_heads": s.text.heads,
            },
        }
    return content


def _gdino_config(d: DecoderWidths, w: Widths) -> dict[str, Any]:
    return {
        "_name_or_path": "checkpoints/grounding-dino-tiny",
        "model_type": "grounding-dino",
        "backbone_config": _swin(d),
        "activation_function": "relu",
        "d_model": d.dim,
        "num_queries": d.queries,
        "encoder_layers": d.encoder_layers,
        "decoder_layers": d.decoder_layers,
        "encoder_ffn_dim": d.ffn,
        "decoder_ffn_dim": d.ffn,
        "encoder_attention_heads": d.heads,
        "decoder_attention_heads": d.heads,
        "encoder_n_points": d.points,
        "decoder_n_points": d.points,
        "num_feature_levels": d.levels,
        "two_stage": True,
        "embedding_init_target": True,
        "max_text_len": 256,
        "position_embedding_type": "sine",
        "positional_embedding_temperature": 20,
        "mask_dim": d.dim,
        "norm": "GN",
        "l_hidden_size": w.llm,
        "num_embs": w.num_embs,
        "disable_custom_kernels": False,
    }


def _swin(d: DecoderWidths) -> dict[str, Any]:
    return {
        "model_type": "swin",
        "embed_dim": d.swin_dim,
        "depths": list(d.swin_depths),
        "num_heads": list(d.swin_heads),
        "window_size": d.window,
        "mlp_ratio": float(d.mlp_ratio),
        "patch_size": 4,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "use_absolute_embeddings": False,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
        "out_indices": [1, 2, 3, 4],
    }


def make_state(w: Widths, *, seed: int = 0) -> State:
    """Random weights under all official names; tied names share one tensor.

    Most are bfloat16, those of the detector's norms float32, position indices int64.
    """
    generator = torch.Generator().manual_seed(seed)
    shared: State = {}
    state: State = {}
    for name, shape in official_keys(w).items():
        group = tied_group(name)
        if group not in shared:
            if name.endswith("relative_position_index"):
                shared[group] = torch.zeros(shape, dtype=torch.int64)
            else:
                dtype = torch.float32 if "norm" in name else torch.bfloat16
                shared[group] = torch.randn(shape, generator=generator).to(dtype)
        state[name] = shared[group]
    return state


def write_config(folder: Path, w: Widths, **changed: object) -> None:
    """Only ``config.json``; ``changed`` are other values of top-level fields."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config_for(w) | changed)
    (folder / "config.json").write_text(text, encoding="utf-8")


def write_bins(folder: Path, state: Mapping[str, Tensor], *, swap: bool = False) -> None:
    """Two ``.bin`` shards and their index; ``swap`` exchanges the shards' content."""
    halves = _halves(state)[:: -1 if swap else 1]
    for file, half in zip(BIN_SHARDS, halves, strict=True):
        torch.save(half, folder / file)
    _write_index(folder / "pytorch_model.bin.index.json", BIN_SHARDS, halves)


def write_safetensors(folder: Path, state: Mapping[str, Tensor], *, shards: bool = True) -> None:
    """Two safetensors shards with an index, or one file."""
    copies = {name: tensor.clone() for name, tensor in state.items()}  # the format shares nothing
    if not shards:
        save_file(copies, folder / "model.safetensors", metadata={"format": "pt"})
        return
    halves = _halves(copies)
    for file, half in zip(SAFE_SHARDS, halves, strict=True):
        save_file(half, folder / file, metadata={"format": "pt"})
    _write_index(folder / "model.safetensors.index.json", SAFE_SHARDS, halves)


def _halves(state: Mapping[str, Tensor]) -> list[State]:
    first = ("vis_encoder.", "llm.", "vl_bridge.", "emb_embeddings")
    return [
        {name: t for name, t in state.items() if name.startswith(first)},
        {name: t for name, t in state.items() if not name.startswith(first)},
    ]


def _write_index(path: Path, files: tuple[str, str], halves: list[State]) -> None:
    weight_map = {
        name: file for file, half in zip(files, halves, strict=True) for name in sorted(half)
    }
    size = sum(t.numel() * t.element_size() for half in halves for t in half.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    path.write_text(json.dumps(index), encoding="utf-8")
