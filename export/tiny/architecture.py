"""Sizes of the tiny VisionLLM v2: small enough for two CPU cores, every part of the real one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from visionllm_edge.export.tiny.picture_sizes import TIED_PREFIXES, branch_section
from visionllm_edge.export.tiny.pose_sizes import tiny_unipose

__all__ = ["PARTS", "deployment_fields", "part_fields", "tiny_config"]

PARTS = ("regions", "pose", "generation", "editing")
"""What the model may have beside language and objects."""

_WIDTH = 192
_SIDES = {"shortest_edge": 128, "longest_edge": 192}
_BUCKETS = [[128, 128], [128, 192], [192, 128]]


def part_fields(
    parts: Collection[str], llm_width: int = _WIDTH, *, scaling_factor: float = 1.0
) -> dict[str, Any]:
    """What ``config.json`` says about the parts.

    Args:
        parts: which of `PARTS` the model has.
        llm_width: of the language model.
        scaling_factor: of the picture branches: one over the spread of the VAE's latents.
    """
    unknown = set(parts) - set(PARTS)
    assert not unknown, f"parts {sorted(unknown)}: expected some of {PARTS}"
    fields: dict[str, Any] = {
        "use_region_encoder": "regions" in parts,
        "use_unipose": "pose" in parts,
        "use_sd": "generation" in parts,
        "use_ip2p": "editing" in parts,
    }
    if "pose" in parts:
        fields["unipose_config"] = tiny_unipose(llm_width)
    for part, key in (("generation", "sd_config"), ("editing", "ip2p_config")):
        if part in parts:
            edits = part == "editing"
            fields[key] = branch_section(edits=edits, scaling_factor=scaling_factor)
    return fields


def deployment_fields(parts: Collection[str]) -> dict[str, Any]:
    """What the object ``visionllm_edge`` says, for these parts."""
    out: dict[str, Any] = {f"det_{name}": value for name, value in _SIDES.items()}
    out["det_buckets"] = _BUCKETS
    if "pose" in parts:
        out |= {f"pose_{name}": value for name, value in _SIDES.items()}
        out["pose_buckets"] = _BUCKETS
    if {"generation", "editing"} <= set(parts):
        out["tied_prefixes"] = dict(TIED_PREFIXES)
    return out | {"max_tiles": 1, "template": "vicuna_v1"}


def tiny_config(
    vocab_size: int, parts: Collection[str] = PARTS[:1], *, scaling_factor: float = 1.0
) -> dict[str, Any]:
    """``config.json`` of the tiny checkpoint, in the official composite layout.

    Args:
        vocab_size: of the tokenizer, control tokens included.
        parts: which of `PARTS` the model has.
        scaling_factor: see `part_fields`.
    """
    dim = _WIDTH
    return {
        "model_type": "visionllmv2",
        "architectures": ["VisionLLMv2Model"],
        "vl_bridge_type": "mlp2x_gelu",
        "vis_output_layer": -2,
        "use_pixelshuffle": False,
        "use_llm_lora": False,
        "num_embs": 4,
        "num_embs_gen": 64,
        "use_gdino": True,
        **part_fields(parts, scaling_factor=scaling_factor),
        "vis_encoder_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "image_size": 112,
            "patch_size": 14,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        "llm_config": {
            "model_type": "llama",
            "vocab_size": vocab_size,
            "hidden_size": dim,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 1024,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        },
        "gdino_config": {
            "model_type": "ov-grounding-dino",
            "backbone_config": {
                "model_type": "swin",
                "embed_dim": 24,
                "depths": [2, 2, 2, 2],
                "num_heads": [1, 2, 4, 8],
                "window_size": 7,
                "mlp_ratio": 4.0,
                "patch_size": 4,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "num_queries": 40,
            "d_model": 128,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_ffn_dim": 512,
            "decoder_ffn_dim": 512,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_n_points": 4,
            "decoder_n_points": 4,
            "num_feature_levels": 4,
            "two_stage": True,
            "embedding_init_target": True,
            "max_text_len": 256,
            "positional_embedding_temperature": 20,
            "mask_dim": 128,
            "norm": "GN",
            "l_hidden_size": dim,
            "num_embs": 4,
        },
        "visionllm_edge": deployment_fields(parts),
    }
