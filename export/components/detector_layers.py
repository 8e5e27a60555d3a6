"""Layers of the object decoder: attention, deformable attention, fusion, encoder and decoder layer.

The maths of each layer is a function of its modules: the keypoint decoder has the same layers under
other key names.

Letters: B batch, S flattened pixels of four levels, T class texts, Q queries, d model width,
L levels, P points. Activations are ReLU, norms come after the residual (post-LN).
Source: Grounding DINO, arXiv 2303.05499; deformable attention, arXiv 2010.04159.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.geometry import Geometry, LevelGeometry, sine_embedding
from visionllm_edge.export.components.modules import module_list
from visionllm_edge.export.config import DetectorConfig
from visionllm_edge.export.ops import ms_deform_attn

__all__ = [
    "MLP",
    "Attention",
    "DecoderLayer",
    "DecoderParts",
    "DeformableAttention",
    "EncoderLayer",
    "FeedForward",
    "FusionParts",
    "Surroundings",
    "decoder_layer",
    "deformable_layer",
    "enhance_text",
    "fuse",
]

# Additive mask value: exp of it is 0 in fp32 and it is finite in fp16.
_MASKED = -1e4


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        """One linear layer per neighbouring pair of widths."""
        super().__init__()
        self.layers = module_list(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """[..., first width] to [..., last width]."""
        for i, layer in enumerate(self.layers):
            x = layer(x) if i == 0 else layer(F.relu(x))
        return x


class Attention(nn.Module):
    """Multi-head attention with packed input weights (the key names of torch's own module)."""

    def __init__(self, dim: int, heads: int) -> None:
        """``dim`` must be a multiple of ``heads``."""
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
        """Queries [B,Q,d], keys and values [B,K,d] to [B,Q,d]; `seen` bool [Q,K] or all."""
        wq, wk, wv = self.in_proj_weight.chunk(3)
        bq, bk, bv = self.in_proj_bias.chunk(3)
        q = _split(F.linear(q, wq, bq), self.heads)
        k = _split(F.linear(k, wk, bk), self.heads)
        v = _split(F.linear(v, wv, bv), self.heads)
        scores = torch.matmul(q, k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        if seen is not None:
            scores = torch.where(seen, scores, _MASKED)
        out: Tensor = self.out_proj(_join(torch.matmul(torch.softmax(scores, dim=-1), v)))
        return out


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention around reference points or boxes."""

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        """The semantic op does the sampling; everything around it is ordinary."""
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._init_offsets()

    def _init_offsets(self) -> None:
        """Each head looks in its own direction at first, further for each point."""
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        grid = torch.stack([angle.cos(), angle.sin()], dim=-1)
        grid = grid / grid.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        bias = grid[:, None, None] * steps[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())

    def forward(
        self, query: Tensor, reference: Tensor, value: Tensor, mask: Tensor, geometry: Geometry
    ) -> Tensor:
        """Sample ``value`` around ``reference``.

        Args:
            query: [B,Q,d], position embedding added.
            reference: [B,Q,L,2] points (x, y) or [B,Q,L,4] boxes (cx, cy, w, h), in units of the
                padded image.
            value: [B,S,d] memory.
            mask: [S], 0 where the memory is padding.
            geometry: sizes of the levels.

        Returns:
            [B,Q,d].
        """
        batch, count, dim = query.shape
        shape = (batch, count, self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query)
        weights = self.attention_weights(query)
        weights = weights.view(batch, count, self.heads, self.levels * self.points)
        weights = torch.softmax(weights, dim=-1).view(shape)
        value = self.value_proj(value) * mask[None, :, None]
        value = value.view(batch, geometry.size, self.heads, dim // self.heads)
        centre = reference[:, :, None, :, None, :2]
        if reference.shape[-1] == 2:
            # As rows: axes of 2 and 4 numbers are slow to broadcast over. All layers have the same
            # reference points, so what depends on them alone is computed once.
            sizes = geometry.spatial_shapes().flip(-1).to(offsets)
            steps = (1 / sizes)[None, :, None].expand(*shape[2:], 2).flatten()
            around = centre.expand(*shape, 2).flatten(2)
            locations = (around + offsets * steps).view(*shape, 2)
        else:
            extent = reference[:, :, None, :, None, 2:]
            locations = centre + offsets.view(*shape, 2) / self.points * extent * 0.5
        out = ms_deform_attn(
            value, geometry.spatial_shapes(), geometry.level_start_index(), locations, weights
        )
        result: Tensor = self.output_proj(out.reshape(batch, count, dim))
        return result


@dataclass(frozen=True)
class FusionParts:
    """Modules of a fusion layer, whatever their key names are.

    Attributes:
        heads: of the attention, over its inner width.
        norms: of pixels and of texts.
        scores: projections of pixels and of texts whose products are the scores.
        values: projections of pixels and of texts to what the other side takes.
        outs: from the inner width back, for pixels and for texts.
        gains: factor per channel on what pixels and texts take.
    """

    heads: int
    norms: tuple[nn.Module, nn.Module]
    scores: tuple[nn.Linear, nn.Linear]
    values: tuple[nn.Linear, nn.Linear]
    outs: tuple[nn.Linear, nn.Linear]
    gains: tuple[Tensor, Tensor]


def fuse(parts: FusionParts, vision: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cross attention both ways between pixels and texts, from one score matrix.

    The residual is added to the normalised tensors. Texts are few and pixels are many, so no
    projection is applied to pixels: the score of a pixel x and a key k, (W x + b) k, is
    x (W' k) + b k; what texts give is projected back before pixels take it; and the sum that a text
    takes of pixels is projected, not the pixels (its weights sum to 1, so b is added once).

    Args:
        parts: of the layer.
        vision: [B,S,d].
        text: [B,T,d].
        mask: [S], 0 where a pixel is padding.
    """
    vision, text = parts.norms[0](vision), parts.norms[1](text)
    (batch, pixels, dim), texts, heads = vision.shape, text.shape[1], parts.heads
    score, value, out = parts.scores[0], parts.values[0], parts.outs[0]
    keys = _split(parts.scores[1](text), heads)  # [B,H,T,D]
    depth = keys.shape[-1]
    keys = keys * depth**-0.5
    turned_keys = torch.matmul(keys, score.weight.view(heads, depth, dim)).flatten(1, 2)
    shifts = torch.matmul(keys, score.bias.view(heads, depth, 1)).flatten(1)
    scores = torch.matmul(vision, turned_keys.transpose(1, 2)) + shifts[:, None]  # [B,S,H*T]

    given = _split(parts.values[1](text), heads)
    back = out.weight.view(dim, heads, depth).permute(1, 2, 0)
    given = torch.matmul(given, back).flatten(1, 2)  # [B,H*T,d]
    weights = torch.softmax(scores.view(batch, pixels, heads, texts), dim=-1).flatten(2)
    dv = torch.matmul(weights, given) + out.bias

    masked = scores.transpose(1, 2) + (1 - mask) * _MASKED
    seen = torch.matmul(torch.softmax(masked, dim=-1), vision).view(batch, heads, texts, dim)
    taken = torch.matmul(seen, value.weight.view(heads, depth, dim).transpose(1, 2))
    dt = parts.outs[1](_join(taken + value.bias.view(heads, 1, depth)))
    return vision + parts.gains[0] * dv, text + parts.gains[1] * dt


@dataclass(frozen=True)
class FeedForward:
    """Two linear layers with ReLU between them, and the norm behind the residual."""

    first: nn.Module
    second: nn.Module
    norm: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        """[...,d] to [...,d]."""
        out: Tensor = self.norm(x + self.second(F.relu(self.first(x))))
        return out


def enhance_text(attend: nn.Module, norm: nn.Module, dense: FeedForward, text: Tensor) -> Tensor:
    """Self-attention among texts [B,T,d]: all are real classes that see each other."""
    index = torch.arange(text.shape[1], device=text.device).to(torch.float32)
    q = text + sine_embedding(index * (2 * math.pi), text.shape[-1], 10000.0)
    return dense(norm(text + attend(q, q, text)))


def deformable_layer(
    attend: nn.Module,
    norm: nn.Module,
    dense: FeedForward,
    x: Tensor,
    positions: Tensor,
    level: LevelGeometry,
    geometry: Geometry,
) -> Tensor:
    """Pixels [B,S,d] look around themselves; positions [S,d] with level embedding."""
    points = (level.reference[:, None] * level.valid_ratios[None])[None]
    points = points.expand(x.shape[0], -1, -1, -1)
    return dense(norm(x + attend(x + positions, points, x, level.mask, geometry)))


@dataclass(frozen=True)
class DecoderParts:
    """Modules of a decoder layer, whatever their key names are; a norm follows each part."""

    self_attend: nn.Module
    self_norm: nn.Module
    text_attend: nn.Module
    text_norm: nn.Module
    look: nn.Module
    look_norm: nn.Module
    dense: FeedForward


@dataclass(frozen=True)
class Surroundings:
    """What all decoder layers look at: memory [B,S,d], text [B,T,d], mask [S], sizes."""

    memory: Tensor
    text: Tensor
    mask: Tensor
    geometry: Geometry


def decoder_layer(
    parts: DecoderParts,
    x: Tensor,
    positions: Tensor,
    reference: Tensor,
    around: Surroundings,
    *,
    groups: int = 1,
    seen: Tensor | None = None,
) -> Tensor:
    """Self-attention, text cross-attention, deformable cross-attention, FFN.

    Args:
        parts: of the layer.
        x: queries [B,Q,d].
        positions: [B,Q,d].
        reference: [B,Q,L,4] boxes in units of the padded picture.
        around: what they look at.
        groups: equal groups of neighbouring queries that see only themselves; divides Q.
        seen: bool [Q/groups, Q/groups], who sees whom in a group; default all.
    """
    batch, count, dim = x.shape
    q = x + positions
    if groups == 1:
        attended = parts.self_attend(q, q, x, seen)
    else:
        shape = (batch * groups, count // groups, dim)
        apart, value = q.reshape(shape), x.reshape(shape)
        attended = parts.self_attend(apart, apart, value, seen).reshape(batch, count, dim)
    x = parts.self_norm(x + attended)
    x = parts.text_norm(x + parts.text_attend(x + positions, around.text, around.text))
    attended = parts.look(x + positions, reference, around.memory, around.mask, around.geometry)
    return parts.dense(parts.look_norm(x + attended))


class _FusionAttention(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.vision_proj = nn.Linear(dim, inner)
        self.text_proj = nn.Linear(dim, inner)
        self.values_vision_proj = nn.Linear(dim, inner)
        self.values_text_proj = nn.Linear(dim, inner)
        self.out_vision_proj = nn.Linear(inner, dim)
        self.out_text_proj = nn.Linear(inner, dim)


class _Fusion(nn.Module):
    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        d, eps = config.d_model, config.layer_norm_eps
        self.heads = config.encoder_attention_heads // 2
        self.layer_norm_vision = nn.LayerNorm(d, eps=eps)
        self.layer_norm_text = nn.LayerNorm(d, eps=eps)
        self.attn = _FusionAttention(d, config.encoder_ffn_dim // 2)
        self.vision_param = nn.Parameter(torch.full((d,), 1e-4))
        self.text_param = nn.Parameter(torch.full((d,), 1e-4))

    def forward(self, vision: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        attn = self.attn
        parts = FusionParts(
            heads=self.heads,
            norms=(self.layer_norm_vision, self.layer_norm_text),
            scores=(attn.vision_proj, attn.text_proj),
            values=(attn.values_vision_proj, attn.values_text_proj),
            outs=(attn.out_vision_proj, attn.out_text_proj),
            gains=(self.vision_param, self.text_param),
        )
        return fuse(parts, vision, text, mask)


class _TextEnhancer(nn.Module):
    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        d, ffn, eps = config.d_model, config.encoder_ffn_dim // 2, config.layer_norm_eps
        self.self_attn = Attention(d, config.encoder_attention_heads // 2)
        self.fc1, self.fc2 = nn.Linear(d, ffn), nn.Linear(ffn, d)
        self.layer_norm_before = nn.LayerNorm(d, eps=eps)
        self.layer_norm_after = nn.LayerNorm(d, eps=eps)

    def forward(self, text: Tensor) -> Tensor:
        dense = FeedForward(self.fc1, self.fc2, self.layer_norm_after)
        return enhance_text(self.self_attn, self.layer_norm_before, dense, text)


class _DeformableLayer(nn.Module):
    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        d, ffn, eps = config.d_model, config.encoder_ffn_dim, config.layer_norm_eps
        self.self_attn = DeformableAttention(
            d, config.encoder_attention_heads, config.num_feature_levels, config.encoder_n_points
        )
        self.self_attn_layer_norm = nn.LayerNorm(d, eps=eps)
        self.fc1, self.fc2 = nn.Linear(d, ffn), nn.Linear(ffn, d)
        self.final_layer_norm = nn.LayerNorm(d, eps=eps)

    def forward(
        self, x: Tensor, positions: Tensor, level: LevelGeometry, geometry: Geometry
    ) -> Tensor:
        dense = FeedForward(self.fc1, self.fc2, self.final_layer_norm)
        return deformable_layer(
            self.self_attn, self.self_attn_layer_norm, dense, x, positions, level, geometry
        )


class EncoderLayer(nn.Module):
    """Fusion, text self-attention, deformable self-attention."""

    def __init__(self, config: DetectorConfig) -> None:
        """Build from the config."""
        super().__init__()
        self.fusion_layer = _Fusion(config)
        self.text_enhancer_layer = _TextEnhancer(config)
        self.deformable_layer = _DeformableLayer(config)

    def forward(
        self,
        vision: Tensor,
        text: Tensor,
        positions: Tensor,
        level: LevelGeometry,
        geometry: Geometry,
    ) -> tuple[Tensor, Tensor]:
        """Vision [B,S,d], text [B,T,d], positions [S,d] with level embedding."""
        vision, text = self.fusion_layer(vision, text, level.mask)
        text = self.text_enhancer_layer(text)
        return self.deformable_layer(vision, positions, level, geometry), text


class DecoderLayer(nn.Module):
    """Self-attention, text cross-attention, deformable cross-attention, FFN."""

    def __init__(self, config: DetectorConfig) -> None:
        """Build from the config."""
        super().__init__()
        d, ffn, eps = config.d_model, config.decoder_ffn_dim, config.layer_norm_eps
        heads = config.decoder_attention_heads
        self.self_attn = Attention(d, heads)
        self.self_attn_layer_norm = nn.LayerNorm(d, eps=eps)
        self.encoder_attn_text = Attention(d, heads)
        self.encoder_attn_text_layer_norm = nn.LayerNorm(d, eps=eps)
        self.encoder_attn = DeformableAttention(
            d, heads, config.num_feature_levels, config.decoder_n_points
        )
        self.encoder_attn_layer_norm = nn.LayerNorm(d, eps=eps)
        self.fc1, self.fc2 = nn.Linear(d, ffn), nn.Linear(ffn, d)
        self.final_layer_norm = nn.LayerNorm(d, eps=eps)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        reference: Tensor,
        memory: Tensor,
        text: Tensor,
        mask: Tensor,
        geometry: Geometry,
    ) -> Tensor:
        """Queries x [B,Q,d], positions [B,Q,d], reference [B,Q,L,4] in padded units."""
        parts = DecoderParts(
            self_attend=self.self_attn,
            self_norm=self.self_attn_layer_norm,
            text_attend=self.encoder_attn_text,
            text_norm=self.encoder_attn_text_layer_norm,
            look=self.encoder_attn,
            look_norm=self.encoder_attn_layer_norm,
            dense=FeedForward(self.fc1, self.fc2, self.final_layer_norm),
        )
        around = Surroundings(memory, text, mask, geometry)
        return decoder_layer(parts, x, positions, reference, around)


def _split(x: Tensor, heads: int) -> Tensor:
    """[B,N,d] to [B,H,N,d/H]."""
    return x.view(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    """[B,H,N,D] to [B,N,H*D]."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])
