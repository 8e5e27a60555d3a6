"""A diffusion branch: adapter, UNet, VAE and text encoder under the checkpoint's key names.

The modules are those of diffusers and transformers, so that they hold any Stable Diffusion 1.5
weights. Their layers are called from here: diffusers decides by the numbers it meets (sizes that
are no multiple of eight, very large tensors), which a graph with free sizes cannot. The results are
the same, for latents of every size.

Importing this file does not import diffusers; making a branch does.

Source: VisionLLM v2 (arXiv 2406.08394), section 3.3; diffusers, `models/unets/
unet_2d_condition.py` and `models/autoencoders/autoencoder_kl.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.image_adapter import ImageAdapter, condition_from_states
from visionllm_edge.export.diffusion_sizes import (
    DiffusionConfig,
    TextEncoderConfig,
    UNetConfig,
    VaeConfig,
)
from visionllm_edge.runtime.errors import ExportError

__all__ = [
    "AdapterStage",
    "DiffusionBranch",
    "TextTower",
    "UNetStage",
    "VaeDecoderStage",
    "VaeEncoderStage",
    "make_unet",
    "make_vae",
]

_MAX_PERIOD = 10_000.0


class TextTower(nn.Module):
    """CLIP text tower (keys ``sd_text_encoder.text_model.*``)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        """Random weights."""
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModel

        self.text_model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                max_position_embeddings=config.max_position_embeddings,
                layer_norm_eps=config.layer_norm_eps,
                hidden_act=config.hidden_act,
                bos_token_id=config.vocab_size - 2,
                eos_token_id=config.vocab_size - 1,
                pad_token_id=config.vocab_size - 1,
                attn_implementation="sdpa",  # type: ignore[call-arg]  # not declared
            )
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids int64 [B,Q] to hidden states [B,Q,d], after the last norm."""
        out: Tensor = self.text_model(input_ids=ids).last_hidden_state
        return out


class DiffusionBranch(ImageAdapter):
    """Everything under ``sd.`` or ``ip2p.``; the adapter's own parts stand beside the others."""

    def __init__(self, config: DiffusionConfig) -> None:
        """Random weights.

        Raises:
            ExportError: diffusers is not installed.
        """
        super().__init__(config.adapter)
        self.config = config
        self.sd_text_encoder = TextTower(config.text_encoder)
        self.sd_vae = make_vae(config.vae)
        self.sd_unet = make_unet(config.unet)


class AdapterStage(nn.Module):
    """Stages ``gen_adapter`` and ``edit_adapter``: states [1,G,D] to condition [1,Q,d]."""

    def __init__(self, branch: ImageAdapter) -> None:
        """Share the branch's weights, and only the adapter's."""
        super().__init__()
        self.emb_proj, self.llm2sd_mapper = branch.emb_proj, branch.llm2sd_mapper
        self.llm2sd_mapper_queries = branch.llm2sd_mapper_queries

    def forward(self, states: Tensor) -> Tensor:
        """See the class."""
        return condition_from_states(
            states, self.emb_proj, self.llm2sd_mapper, self.llm2sd_mapper_queries
        )


class UNetStage(nn.Module):
    """Stages ``gen_unet`` and ``edit_unet``.

    Latents [b,c,h,w], timestep [1] or [b] and condition [b,Q,d] to noise [b,4,h,w]. Time steps are
    numbers of the training schedule and may be fractional. Differentiable.
    """

    def __init__(self, unet: nn.Module, config: UNetConfig) -> None:
        """Share the UNet's weights.

        Args:
            unet: of diffusers.
            config: what it was made from.
        """
        super().__init__()
        self.sd_unet = unet
        self._cosine_first = config.flip_sin_to_cos
        half = config.block_out_channels[0] // 2
        steps = torch.arange(half, dtype=torch.float64, device="cpu") / (half - config.freq_shift)
        # Rounded once, here: a phase is up to a thousand radians, and the exponential of another
        # library would move it by its last digit times that. No buffer: a module that is turned
        # into half precision would round it.
        self._frequencies = torch.exp(-math.log(_MAX_PERIOD) * steps).float()

    def forward(self, latents: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """See the class."""
        unet: Any = self.sd_unet
        time = unet.time_embedding(self._time(timestep).to(latents.dtype))
        x = unet.conv_in(latents)
        skips = [x]
        for block in unet.down_blocks:
            for resnet, attention in _layers(block):
                x = _mixed(attention, resnet(x, time), condition)
                skips.append(x)
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
                skips.append(x)
        first, *others = unet.mid_block.resnets
        x = first(x, time)
        for attention, resnet in zip(unet.mid_block.attentions, others, strict=True):
            x = resnet(_mixed(attention, x, condition), time)
        for block in unet.up_blocks:
            for resnet, attention in _layers(block):
                x = _mixed(attention, resnet(torch.cat([x, skips.pop()], dim=1), time), condition)
            for upsampler in block.upsamplers or ():
                x = F.interpolate(x, size=skips[-1].shape[-2:], mode="nearest")
                x = upsampler.conv(x)
        noise: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
        return noise

    def _time(self, timestep: Tensor) -> Tensor:
        """Sines and cosines [1 or b, width]."""
        phase = timestep[:, None] * self._frequencies.to(timestep)
        parts = [phase.cos(), phase.sin()] if self._cosine_first else [phase.sin(), phase.cos()]
        return torch.cat(parts, dim=-1)


class VaeDecoderStage(nn.Module):
    """Stages ``gen_vae_decoder`` and ``edit_vae_decoder``: latents [1,4,h,w] to pixels [1,3,H,W].

    Latents are already divided by the scaling factor; pixels are about -1 to 1, not clipped.
    """

    def __init__(self, vae: nn.Module) -> None:
        """Share the decoder's weights."""
        super().__init__()
        parts: Any = vae
        self.post_quant_conv, self.decoder = parts.post_quant_conv, parts.decoder

    def forward(self, latents: Tensor) -> Tensor:
        """See the class."""
        decoder: Any = self.decoder
        x = decoder.mid_block(decoder.conv_in(self.post_quant_conv(latents)))
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                x = resnet(x, None)
            for upsampler in block.upsamplers or ():
                x = upsampler.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        pixels: Tensor = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))
        return pixels


class VaeEncoderStage(nn.Module):
    """Stage ``edit_vae_encoder``: pixels [1,3,H,W] in -1 to 1 to latents [1,4,h,w].

    The mode of the posterior, not multiplied by the scaling factor.
    """

    def __init__(self, vae: nn.Module) -> None:
        """Share the encoder's weights."""
        super().__init__()
        parts: Any = vae
        self.quant_conv, self.encoder = parts.quant_conv, parts.encoder

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        mean: Tensor = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)[0]
        return mean


def _layers(block: Any) -> list[tuple[Any, Any]]:
    """Residual blocks with the attention behind each, None where there is none."""
    attentions = getattr(block, "attentions", None)
    return list(
        zip(
            block.resnets,
            attentions if attentions is not None else [None] * len(block.resnets),
            strict=True,
        )
    )


def _mixed(attention: Any, x: Tensor, condition: Tensor) -> Tensor:
    if attention is None:
        return x
    out: Tensor = attention(x, encoder_hidden_states=condition, return_dict=False)[0]
    return out


def make_unet(config: UNetConfig) -> nn.Module:
    """UNet2DConditionModel with random weights (keys ``sd_unet.*``).

    Raises:
        ExportError: diffusers is not installed.
    """
    try:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    except ImportError as e:
        raise _missing(e) from e
    unet: nn.Module = UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=config.down_block_types,
        up_block_types=config.up_block_types,
        attention_head_dim=config.attention_head_dim,
        cross_attention_dim=config.cross_attention_dim,
        transformer_layers_per_block=config.transformer_layers_per_block,
        use_linear_projection=config.use_linear_projection,
        norm_num_groups=config.norm_num_groups,
        norm_eps=config.norm_eps,
        flip_sin_to_cos=config.flip_sin_to_cos,
        freq_shift=config.freq_shift,
        sample_size=config.sample_size,
    )
    return unet


def make_vae(config: VaeConfig) -> nn.Module:
    """AutoencoderKL with random weights (keys ``sd_vae.*``).

    Raises:
        ExportError: diffusers is not installed.
    """
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    except ImportError as e:
        raise _missing(e) from e
    levels = len(config.block_out_channels)
    vae: nn.Module = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=config.norm_num_groups,
        mid_block_add_attention=config.mid_block_add_attention,
        scaling_factor=config.scaling_factor,
    )
    return vae


def _missing(error: ImportError) -> ExportError:
    return ExportError(
        f"image generation and editing: expected the package 'diffusers', got: {error}. "
        "Install it with pip install 'visionllm-edge[export]'."
    )
