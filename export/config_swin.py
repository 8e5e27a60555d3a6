"""Configuration of a Swin backbone; both perception decoders have one."""

from __future__ import annotations

from dataclasses import dataclass

from visionllm_edge.export.config_section import Section

__all__ = ["SWIN_TINY", "SwinConfig", "swin_config"]


@dataclass(frozen=True)
class SwinConfig:
    """Swin backbone with four stages."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int
    mlp_ratio: float = 4.0
    patch_size: int = 4
    layer_norm_eps: float = 1e-5

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four stages' maps (strides 4, 8, 16, 32)."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.depths)))


SWIN_TINY = SwinConfig(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7)
"""The published Swin-T."""


def swin_config(section: Section) -> SwinConfig:
    """Read a Swin backbone in Hugging Face's field names.

    Raises:
        ConfigError: a field is missing, or asks for something that is not supported.
    """
    section.expect("model_type", "swin", optional=True)
    section.expect("hidden_act", "gelu", optional=True)
    section.expect("qkv_bias", True, optional=True)
    section.expect("use_absolute_embeddings", False, optional=True)
    return SwinConfig(
        embed_dim=section.integer("embed_dim"),
        depths=section.integers("depths", 4),
        num_heads=section.integers("num_heads", 4),
        window_size=section.integer("window_size"),
        mlp_ratio=section.number("mlp_ratio", 4.0),
        patch_size=section.integer("patch_size", 4),
        layer_norm_eps=section.number("layer_norm_eps", 1e-5),
    )
