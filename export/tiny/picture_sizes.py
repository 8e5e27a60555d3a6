"""Sizes of the tiny picture branches: the official structure, small enough for one CPU core."""

from __future__ import annotations

from typing import Any

from visionllm_edge.export.config_diffusion import DiffusionConfig, diffusion_config
from visionllm_edge.export.config_section import Section

__all__ = ["PICTURE_PX", "TIED_PREFIXES", "branch_config", "branch_section", "vae_arguments"]

PICTURE_PX = 64

TIED_PREFIXES = {
    "ip2p.sd_vae.": "sd.sd_vae.",
    "ip2p.sd_text_encoder.": "sd.sd_text_encoder.",
}
"""What both branches share and the checkpoint stores once."""

_FACTOR = 4
_WIDTH = 64
_TOKENS = 16
_LLM_WIDTH = 192
_LINK_ROWS = 64


def vae_arguments() -> dict[str, Any]:
    """Arguments of diffusers' ``AutoencoderKL``: 64x64 px to 16x16 latents of 4 channels."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [16, 32, 32],
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "sample_size": PICTURE_PX,
    }


def branch_section(*, edits: bool, scaling_factor: float) -> dict[str, Any]:
    """The object ``sd_config``, or ``ip2p_config`` for edits.

    Args:
        edits: whether the UNet takes a source picture.
        scaling_factor: one over the standard deviation of the VAE's latents.
    """
    channels = 8 if edits else 4
    vae = {**vae_arguments(), "scaling_factor": round(scaling_factor, 5)}
    return {
        "llm_hidden_size": _LLM_WIDTH,
        "sd_hidden_size": _WIDTH,
        "num_queries": _TOKENS,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "num_embed_tokens": _LINK_ROWS,
        "trigger_token": "[EDIT]" if edits else "[GEN]",
        "cfg_drop_rate": 0.05 if edits else 0.1,
        "cfg_scale": 3.0,
        **({"image_cfg_scale": 1.5} if edits else {}),
        "num_inference_steps": 20,
        "unet_config": {
            # Attention at 8x8 only: at 16x16 too, a step took more than twice the time.
            "sample_size": PICTURE_PX // _FACTOR,
            "in_channels": channels,
            "out_channels": 4,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "block_out_channels": [32, 40],
            "layers_per_block": 1,
            "cross_attention_dim": _WIDTH,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
        },
        "vae_config": vae,
        "text_encoder_config": {
            "model_type": "clip_text_model",
            "vocab_size": 2,
            "hidden_size": _WIDTH,
            "intermediate_size": 2 * _WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": _TOKENS,
        },
        "scheduler_config": {
            "_class_name": "DPMSolverMultistepScheduler",
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": "epsilon",
        },
    }


def branch_config(*, edits: bool, scaling_factor: float) -> DiffusionConfig:
    """The same, read."""
    section = Section(
        branch_section(edits=edits, scaling_factor=scaling_factor),
        "ip2p_config" if edits else "sd_config",
        supported="Only the blocks of Stable Diffusion 1.5 are supported.",
        wanted="sizes of a picture branch",
    )
    return diffusion_config(section, _LLM_WIDTH, _LINK_ROWS, in_channels=8 if edits else 4)
