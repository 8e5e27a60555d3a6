"""Sizes of the tiny keypoint decoder, a little less of the object decoder whose weights it takes.

One encoder layer and one Swin block fewer, and fewer instances than the released model has.
"""

from __future__ import annotations

from typing import Any

__all__ = ["tiny_unipose"]


def tiny_unipose(llm_width: int) -> dict[str, Any]:
    """``unipose_config`` of the tiny checkpoint."""
    return {
        "model_type": "unipose",
        "backbone_config": {
            "model_type": "swin",
            "embed_dim": 24,
            "depths": [2, 2, 2, 1],
            "num_heads": [1, 2, 4, 8],
            "window_size": 7,
            "mlp_ratio": 4.0,
            "patch_size": 4,
        },
        "return_interm_indices": [1, 2, 3],
        "hidden_dim": 128,
        "nheads": 4,
        "enc_layers": 1,
        "dec_layers": 3,
        "dim_feedforward": 512,
        "num_feature_levels": 4,
        "enc_n_points": 4,
        "dec_n_points": 4,
        "num_queries": 40,
        "num_instances": 10,
        "two_stage_type": "standard",
        "embed_init_tgt": True,
        "num_body_points": 68,
        "num_box_decoder_layers": 1,
        "pe_temperatureH": 20,
        "pe_temperatureW": 20,
        "use_text_enhancer": True,
        "use_fusion_layer": True,
        "use_text_cross_attention": True,
        "l_hidden_size": llm_width,
    }
