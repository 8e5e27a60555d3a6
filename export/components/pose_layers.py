"""Layers of the keypoint decoder: key names of its own, maths of the object decoder's layers.

Letters as in `visionllm_edge.export.components.detector_layers`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visionllm_edge.export.components.detector_layers import (
    Attention,
    DecoderParts,
    DeformableAttention,
    FeedForward,
    FusionParts,
    Surroundings,
    decoder_layer,
    deformable_layer,
    enhance_text,
    fuse,
)
from visionllm_edge.export.components.geometry import Geometry, LevelGeometry
from visionllm_edge.export.components.modules import module_list
from visionllm_edge.export.config_pose import PoseConfig

__all__ = ["PoseDecoderLayer", "PoseEncoder"]


class _FusionAttention(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.v_proj = nn.Linear(dim, inner)
        self.l_proj = nn.Linear(dim, inner)
        self.values_v_proj = nn.Linear(dim, inner)
        self.values_l_proj = nn.Linear(dim, inner)
        self.out_v_proj = nn.Linear(inner, dim)
        self.out_l_proj = nn.Linear(inner, dim)


class _Fusion(nn.Module):
    def __init__(self, config: PoseConfig) -> None:
        super().__init__()
        d, eps = config.d_model, config.layer_norm_eps
        self.heads = config.heads // 2
        self.layer_norm_v = nn.LayerNorm(d, eps=eps)
        self.layer_norm_l = nn.LayerNorm(d, eps=eps)
        self.attn = _FusionAttention(d, config.ffn_dim // 2)
        self.gam_v = nn.Parameter(torch.full((d,), 1e-4))
        self.gam_l = nn.Parameter(torch.full((d,), 1e-4))

    def forward(self, vision: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        attn = self.attn
        parts = FusionParts(
            heads=self.heads,
            norms=(self.layer_norm_v, self.layer_norm_l),
            scores=(attn.v_proj, attn.l_proj),
            values=(attn.values_v_proj, attn.values_l_proj),
            outs=(attn.out_v_proj, attn.out_l_proj),
            gains=(self.gam_v, self.gam_l),
        )
        return fuse(parts, vision, text, mask)


class _TextLayer(nn.Module):
    def __init__(self, config: PoseConfig) -> None:
        super().__init__()
        d, ffn, eps = config.d_model, config.ffn_dim // 2, config.layer_norm_eps
        self.self_attn = Attention(d, config.heads // 2)
        self.linear1, self.linear2 = nn.Linear(d, ffn), nn.Linear(ffn, d)
        self.norm1 = nn.LayerNorm(d, eps=eps)
        self.norm2 = nn.LayerNorm(d, eps=eps)

    def forward(self, text: Tensor) -> Tensor:
        dense = FeedForward(self.linear1, self.linear2, self.norm2)
        return enhance_text(self.self_attn, self.norm1, dense, text)


class _PixelLayer(nn.Module):
    def __init__(self, config: PoseConfig) -> None:
        super().__init__()
        d, ffn, eps = config.d_model, config.ffn_dim, config.layer_norm_eps
        self.self_attn = DeformableAttention(
            d, config.heads, config.num_feature_levels, config.encoder_n_points
        )
        self.norm1 = nn.LayerNorm(d, eps=eps)
        self.linear1, self.linear2 = nn.Linear(d, ffn), nn.Linear(ffn, d)
        self.norm2 = nn.LayerNorm(d, eps=eps)

    def forward(
        self, x: Tensor, positions: Tensor, level: LevelGeometry, geometry: Geometry
    ) -> Tensor:
        dense = FeedForward(self.linear1, self.linear2, self.norm2)
        return deformable_layer(self.self_attn, self.norm1, dense, x, positions, level, geometry)


class PoseEncoder(nn.Module):
    """All encoder layers: fusion, text self-attention, deformable self-attention in turn."""

    def __init__(self, config: PoseConfig) -> None:
        """Build from the config."""
        super().__init__()
        count = range(config.encoder_layers)
        self.fusion_layers = module_list(_Fusion(config) for _ in count)
        self.text_layers = module_list(_TextLayer(config) for _ in count)
        self.layers = module_list(_PixelLayer(config) for _ in count)

    def forward(
        self,
        vision: Tensor,
        text: Tensor,
        positions: Tensor,
        level: LevelGeometry,
        geometry: Geometry,
    ) -> tuple[Tensor, Tensor]:
        """Vision [B,S,d], text [B,No,d], positions [S,d] with level embedding."""
        for fusion, words, pixels in zip(
            self.fusion_layers, self.text_layers, self.layers, strict=True
        ):
            vision, text = fusion(vision, text, level.mask)
            text = words(text)
            vision = pixels(vision, positions, level, geometry)
        return vision, text


class PoseDecoderLayer(nn.Module):
    """Self-attention, text cross-attention, deformable cross-attention, FFN."""

    def __init__(self, config: PoseConfig) -> None:
        """Build from the config."""
        super().__init__()
        d, ffn, eps = config.d_model, config.ffn_dim, config.layer_norm_eps
        self.self_attn = Attention(d, config.heads)
        self.norm2 = nn.LayerNorm(d, eps=eps)
        self.ca_text = Attention(d, config.heads)
        self.catext_norm = nn.LayerNorm(d, eps=eps)
        self.cross_attn = DeformableAttention(
            d, config.heads, config.num_feature_levels, config.decoder_n_points
        )
        self.norm1 = nn.LayerNorm(d, eps=eps)
        self.linear1, self.linear2 = nn.Linear(d, ffn), nn.Linear(ffn, d)
        self.norm3 = nn.LayerNorm(d, eps=eps)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        reference: Tensor,
        around: Surroundings,
        *,
        groups: int = 1,
        seen: Tensor | None = None,
    ) -> Tensor:
        """See `decoder_layer`."""
        parts = DecoderParts(
            self_attend=self.self_attn,
            self_norm=self.norm2,
            text_attend=self.ca_text,
            text_norm=self.catext_norm,
            look=self.cross_attn,
            look_norm=self.norm1,
            dense=FeedForward(self.linear1, self.linear2, self.norm3),
        )
        return decoder_layer(parts, x, positions, reference, around, groups=groups, seen=seen)
