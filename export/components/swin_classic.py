"""The Swin backbone under its authors' own key names, with query, key and value in one matrix.

The keypoint decoder's backbone is stored like this. Its maths is that of
`visionllm_edge.export.components.swin`; only the names and the packing differ. Stage 1 is not
output. Source: Swin Transformer, arXiv 2103.14030.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.modules import module_list
from visionllm_edge.export.components.swin import (
    PatchMerging,
    attend_in_windows,
    relative_index,
    window_attention,
)
from visionllm_edge.export.config_swin import SwinConfig

__all__ = ["ClassicSwin"]


class ClassicSwin(nn.Module):
    """Pixels [B,3,H,W] to three maps [B,C_i,H/s,W/s] at strides 8, 16, 32."""

    def __init__(self, config: SwinConfig) -> None:
        """Build from the config; weights are random until a checkpoint is loaded."""
        super().__init__()
        last = len(config.depths) - 1
        self.patch_embed = _PatchEmbed(config)
        self.layers = module_list(_Stage(config, i, last=i == last) for i in range(last + 1))
        for i, width in enumerate(config.channels[1:], start=1):
            self.add_module(f"norm{i}", nn.LayerNorm(width))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        x, maps = self.patch_embed(pixels), []
        for i, stage in enumerate(self.layers):
            for block in stage.blocks:
                x = block(x)
            if i > 0:
                norm = self.get_submodule(f"norm{i}")
                maps.append(norm(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(maps)


class _PatchEmbed(nn.Module):
    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, config.patch_size, config.patch_size)
        self.norm = nn.LayerNorm(config.embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.norm(self.proj(pixels).permute(0, 2, 3, 1))
        return out


class _Stage(nn.Module):
    def __init__(self, config: SwinConfig, index: int, *, last: bool) -> None:
        super().__init__()
        dim, heads = config.channels[index], config.num_heads[index]
        self.blocks = module_list(
            _Block(config, dim, heads, shift=config.window_size // 2 * (j % 2))
            for j in range(config.depths[index])
        )
        self.downsample = None if last else PatchMerging(dim)


class _Block(nn.Module):
    def __init__(self, config: SwinConfig, dim: int, heads: int, *, shift: int) -> None:
        super().__init__()
        self.window, self.shift = config.window_size, shift
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attn = _Attention(dim, heads, config.window_size)
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = _Mlp(dim, int(dim * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + attend_in_windows(self.norm1(x), self.attn, self.window, self.shift)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _Attention(nn.Module):
    index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("index", relative_index(window), persistent=False)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(windows).chunk(3, dim=-1)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)[None]
        out: Tensor = self.proj(window_attention(q, k, v, bias, mask, self.heads))
        return out


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out
