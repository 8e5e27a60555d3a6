"""Sizes of the tiny VisionLLM v2: small enough for two CPU cores, every part of the real one."""

from __future__ import annotations

from typing import Any

__all__ = ["tiny_config"]


def tiny_config(vocab_size: int) -> dict[str, Any]:
    """``config.json`` of the tiny checkpoint, in the official composite layout."""
    dim = 192
    return {
        "model_type": "visionllmv2",
        "architectures": ["VisionLLMv2Model"],
        "vl_bridge_type": "mlp2x_gelu",
        "vis_output_layer": -2,
        "use_pixelshuffle": False,
        "use_llm_lora": False,
        "num_embs": 4,
        "num_embs_gen": 64,
        "use_region_encoder": False,
        "use_gdino": True,
        "use_unipose": False,
        "use_sd": False,
        "use_ip2p": False,
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
        "visionllm_edge": {
            "det_shortest_edge": 128,
            "det_longest_edge": 192,
            "det_buckets": [[128, 128], [128, 192], [192, 128]],
            "max_tiles": 1,
            "template": "vicuna_v1",
        },
    }
