"""Diffusion branches of a few ten thousand weights, as sections of a small checkpoint's config."""

from __future__ import annotations

from typing import Any

from visionllm_edge.export.config_diffusion import DiffusionConfig, diffusion_config
from visionllm_edge.export.config_section import Section

__all__ = ["branch_config", "diffusion_section", "with_diffusion"]


def diffusion_section(llm_width: int, num_embs_gen: int) -> dict[str, Any]:
    """`sd_config` or `ip2p_config`: two levels, attention on the finer one and in the middle."""
    return {
        "llm_hidden_size": llm_width,
        "sd_hidden_size": 16,
        "num_queries": 6,
        "num_embed_tokens": num_embs_gen,
        "num_heads": 2,
        "dim_feedforward": 24,
        "cfg_scale": 7.5,
        "unet_config": {
            "block_out_channels": [8, 16],
            "layers_per_block": 1,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            "sample_size": 8,
        },
        "vae_config": {
            "block_out_channels": [4, 8],
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "scaling_factor": 0.5,
        },
        "text_encoder_config": {
            "vocab_size": 9,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 8,
        },
    }


def branch_config(*, edits: bool = False, **changed: Any) -> DiffusionConfig:
    """The parsed section, some fields changed, for states [*,5,12]."""
    data = diffusion_section(12, 5) | changed
    section = Section(data, "ip2p_config" if edits else "sd_config", supported="", wanted="")
    return diffusion_config(section, 12, 5, in_channels=8 if edits else 4)


def with_diffusion(config: dict[str, Any]) -> dict[str, Any]:
    """A parsed `config.json` with both branches."""
    section = diffusion_section(config["llm_config"]["hidden_size"], config["num_embs_gen"])
    return config | {"use_sd": True, "use_ip2p": True, "sd_config": section, "ip2p_config": section}
