"""The JSON files of the released VisionLLM v2, as far as their fields are known.

Source: VisionLLM v2 (arXiv 2406.08394), and the public configurations of the models that it was
built from: CLIP ViT-L/14-336, Vicuna 7B v1.5, Grounding DINO tiny, X-Pose Swin-T.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

__all__ = ["PARTS", "SIDE_FILES", "official_config"]

PARTS = ("region_encoder", "unipose", "sd", "ip2p")
"""Parts that can be left out, by the name in the field ``use_<part>``."""

SIDE_FILES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "generation_config.json": {
            "_from_model_config": True,
            "transformers_version": "4.34.0",
        },
        "preprocessor_config.json": {
            "crop_size": 336,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "size": 336,
        },
    }
)
"""The other JSON files of the folder; nothing here reads them."""

_LLM_WIDTH, _LLM_LAYERS, _VOCABULARY = 4096, 32, 32026
_NUM_EMBS, _NUM_EMBS_GEN = 4, 64


def official_config(
    *,
    llm_layers: int = _LLM_LAYERS,
    without: Collection[str] = (),
    buckets: Sequence[tuple[int, int]] = (),
) -> dict[str, Any]:
    """The parsed ``config.json``.

    Args:
        llm_layers: of the language model; 32 in the released one.
        without: names out of `PARTS`.
        buckets: height and width of the perception decoders' graphs; the compiler's own by default.
    """
    config: dict[str, Any] = {
        "_name_or_path": "work_dirs/visionllmv2-7b-gen-edit-det/",
        "architectures": ["VisionLLMv2Model"],
        "model_type": "visionllmv2",
        "torch_dtype": "bfloat16",
        "vl_bridge_type": "mlp2x_gelu",
        "vis_output_layer": -2,
        "use_pixelshuffle": False,
        "use_llm_lora": False,
        "num_embs": _NUM_EMBS,
        "num_embs_gen": _NUM_EMBS_GEN,
        "use_gdino": True,
        **{f"use_{part}": part not in without for part in PARTS},
        "vis_encoder_config": _vision(),
        "llm_config": _llm(llm_layers),
        "gdino_config": _detector(),
        "unipose_config": _pose(),
        "sd_config": _diffusion("stable-diffusion-v1-5", "[GEN]", 32016, 0.1),
        "ip2p_config": _diffusion("instruct-pix2pix", "[EDIT]", 32017, 0.05),
    }
    if buckets:
        sizes = [list(size) for size in buckets]
        config["visionllm_edge"] = {"det_buckets": sizes, "pose_buckets": sizes}
    return config


def _vision() -> dict[str, Any]:
    return {
        "_name_or_path": "checkpoints/clip-vit-large-patch14-336",
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_channels": 3,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
    }


def _llm(layers: int) -> dict[str, Any]:
    return {
        "_name_or_path": "checkpoints/vicuna-7b-v1.5",
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": _VOCABULARY,
        "hidden_size": _LLM_WIDTH,
        "intermediate_size": 11008,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "use_cache": True,
    }


def _detector() -> dict[str, Any]:
    return {
        "_name_or_path": "checkpoints/grounding-dino-tiny",
        "model_type": "grounding-dino",
        "backbone": None,
        "backbone_config": {
            "model_type": "swin",
            "embed_dim": 96,
            "depths": [2, 2, 6, 2],
            "num_heads": [3, 6, 12, 24],
            "num_layers": 4,
            "hidden_size": 768,
            "window_size": 7,
            "mlp_ratio": 4.0,
            "patch_size": 4,
            "image_size": 224,
            "num_channels": 3,
            "qkv_bias": True,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "use_absolute_embeddings": False,
            "stage_names": ["stem", "stage1", "stage2", "stage3", "stage4"],
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
            "out_indices": [1, 2, 3, 4],
        },
        "use_timm_backbone": False,
        "activation_function": "relu",
        "d_model": 256,
        "num_queries": 900,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_ffn_dim": 2048,
        "decoder_ffn_dim": 2048,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "encoder_n_points": 4,
        "decoder_n_points": 4,
        "num_feature_levels": 4,
        "two_stage": True,
        "embedding_init_target": True,
        "max_text_len": 256,
        "position_embedding_type": "sine",
        "positional_embedding_temperature": 20,
        "layer_norm_eps": 1e-5,
        "mask_dim": 256,
        "norm": "GN",
        "l_hidden_size": _LLM_WIDTH,
        "num_embs": _NUM_EMBS,
        "disable_custom_kernels": False,
    }


def _pose() -> dict[str, Any]:
    return {
        "model_type": "unipose",
        "modelname": "unipose",
        "backbone": "swin_T_224_1k",
        "return_interm_indices": [1, 2, 3],
        "hidden_dim": 256,
        "nheads": 8,
        "enc_layers": 6,
        "dec_layers": 6,
        "dim_feedforward": 2048,
        "dropout": 0.0,
        "pre_norm": False,
        "transformer_activation": "relu",
        "num_feature_levels": 4,
        "enc_n_points": 4,
        "dec_n_points": 4,
        "num_queries": 900,
        "two_stage_type": "standard",
        "embed_init_tgt": True,
        "num_body_points": 68,
        "num_box_decoder_layers": 2,
        "use_text_enhancer": True,
        "use_fusion_layer": True,
        "use_text_cross_attention": True,
        "pe_temperatureH": 20,
        "pe_temperatureW": 20,
        "l_hidden_size": _LLM_WIDTH,
    }


def _diffusion(repository: str, token: str, token_id: int, drop_rate: float) -> dict[str, Any]:
    return {
        "llm_hidden_size": _LLM_WIDTH,
        "sd_hidden_size": 768,
        "num_queries": 77,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "sd_model_id": f"checkpoints/{repository}",
        "trigger_token": token,
        "trigger_token_id": token_id,
        "num_embed_tokens": _NUM_EMBS_GEN,
        "cfg_drop_rate": drop_rate,
        "cfg_scale": 7.5,
    }
