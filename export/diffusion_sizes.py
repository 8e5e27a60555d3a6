"""Sizes of a diffusion branch: adapter, UNet, VAE, text encoder, scheduler; defaults of SD 1.5.

Plain data; `visionllm_edge.export.config_diffusion` reads them from a checkpoint's ``config.json``.

Source: VisionLLM v2 (arXiv 2406.08394), section 3.3; the public configs of Stable Diffusion 1.5.
"""

from __future__ import annotations

from dataclasses import dataclass

from visionllm_edge.runtime.decoder_specs import SchedulerSpec

__all__ = [
    "CROSS_DOWN",
    "CROSS_UP",
    "PLAIN_DOWN",
    "PLAIN_UP",
    "AdapterConfig",
    "DiffusionConfig",
    "TextEncoderConfig",
    "UNetConfig",
    "VaeConfig",
]

CROSS_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"


@dataclass(frozen=True)
class AdapterConfig:
    """From the LLM's states to a condition: projection, then a small encoder-decoder.

    Attributes:
        llm_hidden_size: width D of the states.
        num_states: rows G of the super link.
        hidden_size: width d of the condition (``sd_hidden_size``).
        num_queries: rows Q of the condition.
        num_encoder_layers: of the transformer.
        num_decoder_layers: of the transformer.
        num_heads: of its attention; torch's default.
        feedforward_size: inner width of its layers; four times ``hidden_size`` in the release.
    """

    llm_hidden_size: int
    num_states: int
    hidden_size: int = 768
    num_queries: int = 77
    num_encoder_layers: int = 1
    num_decoder_layers: int = 1
    num_heads: int = 8
    feedforward_size: int = 3072


@dataclass(frozen=True)
class UNetConfig:
    """UNet2DConditionModel, the fields that vary.

    Attributes:
        in_channels: latents, and for editing the picture's latents behind them.
        out_channels: of the predicted noise.
        block_out_channels: width of each level, the finest first.
        layers_per_block: residual blocks per level on the way down (one more on the way up).
        down_block_types: with or without attention, by diffusers' names.
        up_block_types: the same on the way up, the coarsest first.
        attention_head_dim: number of heads per level, whatever the name says: diffusers keeps it
            for the files of Stable Diffusion 1.
        cross_attention_dim: width of the condition.
        transformer_layers_per_block: attention layers behind each residual block.
        use_linear_projection: linear layers instead of 1x1 convolutions around the attention.
        norm_num_groups: of every group norm.
        norm_eps: of every group norm.
        flip_sin_to_cos: order of the halves of the time embedding.
        freq_shift: of the time embedding.
        sample_size: side of the latents it was trained at.
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    down_block_types: tuple[str, ...] = (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, PLAIN_DOWN)
    up_block_types: tuple[str, ...] = (PLAIN_UP, CROSS_UP, CROSS_UP, CROSS_UP)
    attention_head_dim: tuple[int, ...] = (8, 8, 8, 8)
    cross_attention_dim: int = 768
    transformer_layers_per_block: int = 1
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    sample_size: int = 64


@dataclass(frozen=True)
class VaeConfig:
    """AutoencoderKL, the fields that vary.

    Attributes:
        latent_channels: of the latents.
        block_out_channels: width of each level, the finest first.
        layers_per_block: residual blocks per level in the encoder (one more in the decoder).
        norm_num_groups: of every group norm.
        mid_block_add_attention: whether the coarsest level has attention.
        scaling_factor: the diffusion runs on latents times this.
    """

    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    scaling_factor: float = 0.18215

    @property
    def factor(self) -> int:
        """Pixels per latent, per side."""
        return int(2 ** (len(self.block_out_channels) - 1))


@dataclass(frozen=True)
class TextEncoderConfig:
    """CLIP text tower; it runs once, on the empty prompt, when the checkpoint is compiled."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"


@dataclass(frozen=True)
class DiffusionConfig:
    """One branch.

    Attributes:
        adapter: from LLM states to the condition.
        unet: predicts the noise.
        vae: latents from and to pixels.
        text_encoder: gives the embedding of the empty prompt.
        scheduler: steps of the sampling.
        steps: of a run, by default.
        guidance: strength of the condition (``cfg_scale``).
        image_guidance: strength of the source picture; 0 without one.
        edits: whether the UNet takes a source picture.
    """

    adapter: AdapterConfig
    unet: UNetConfig
    vae: VaeConfig
    text_encoder: TextEncoderConfig
    scheduler: SchedulerSpec
    steps: int
    guidance: float
    image_guidance: float
    edits: bool

    @property
    def image_size(self) -> int:
        """Side of the picture that the UNet was trained at, pixels."""
        return self.unet.sample_size * self.vae.factor
