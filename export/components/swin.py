"""Swin backbone of the object decoder.

Input: pixels [B,3,H,W], float32. Output: four maps [B,C_i,H/s,W/s] at strides 4, 8, 16, 32, each
with its own layer norm, taken before down-sampling. Window size and shift never shrink, also where
the map is smaller than a window: it is padded with zeros after the norm.

Height and width are plain integers while tracing, so a graph is right for one size only.
Key names are those of the Hugging Face backbone. Source: Swin Transformer, arXiv 2103.14030.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.modules import module_list
from visionllm_edge.export.config import SwinConfig

__all__ = [
    "PatchMerging",
    "SwinBackbone",
    "attend_in_windows",
    "relative_index",
    "window_attention",
]


class SwinBackbone(nn.Module):
    """Four-stage Swin with one output per stage."""

    def __init__(self, config: SwinConfig) -> None:
        """Build from the config; weights are random until a checkpoint is loaded."""
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.hidden_states_norms = nn.ModuleDict(
            {f"stage{i + 1}": nn.LayerNorm(c) for i, c in enumerate(config.channels)}
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Pixels [B,3,H,W] to four maps [B,C_i,H/s_i,W/s_i]."""
        x = self.embeddings(pixels)
        maps = []
        for stage, norm in zip(self.encoder.layers, self.hidden_states_norms.values(), strict=True):
            for block in stage.blocks:
                x = block(x)
            maps.append(norm(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(maps)


# The config's epsilon is that of the norms inside the blocks; all others have torch's 1e-5.


class _Embeddings(nn.Module):
    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.patch_embeddings = _PatchEmbeddings(config)
        self.norm = nn.LayerNorm(config.embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embeddings.projection(pixels)
        out: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return out


class _PatchEmbeddings(nn.Module):
    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, config.embed_dim, config.patch_size, config.patch_size)


class _Encoder(nn.Module):
    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        last = len(config.depths) - 1
        self.layers = module_list(_Stage(config, i, last=i == last) for i in range(last + 1))


class _Stage(nn.Module):
    def __init__(self, config: SwinConfig, index: int, *, last: bool) -> None:
        super().__init__()
        dim = config.channels[index]
        self.blocks = module_list(
            _Block(config, dim, config.num_heads[index], shift=config.window_size // 2 * (j % 2))
            for j in range(config.depths[index])
        )
        self.downsample = None if last else PatchMerging(dim)


class PatchMerging(nn.Module):
    """Halve a map's sides and double its width."""

    def __init__(self, dim: int) -> None:
        """Input width ``dim``."""
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B,H,W,C] to [B,ceil(H/2),ceil(W/2),2C]."""
        height, width = x.shape[1], x.shape[2]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        quarters = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        out: Tensor = self.reduction(self.norm(torch.cat(quarters, dim=-1)))
        return out


class _Block(nn.Module):
    def __init__(self, config: SwinConfig, dim: int, heads: int, *, shift: int) -> None:
        super().__init__()
        self.window, self.shift, self.heads = config.window_size, shift, heads
        eps, hidden = config.layer_norm_eps, int(dim * config.mlp_ratio)
        self.layernorm_before = nn.LayerNorm(dim, eps=eps)
        self.attention = _Attention(dim, heads, config.window_size)
        self.layernorm_after = nn.LayerNorm(dim, eps=eps)
        self.intermediate = _Dense(dim, hidden)
        self.output = _Dense(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = attend_in_windows(self.layernorm_before(x), self.attention, self.window, self.shift)
        x = x + y
        hidden = F.gelu(self.intermediate(self.layernorm_after(x)))
        out: Tensor = x + self.output(hidden)
        return out


def attend_in_windows(x: Tensor, attention: nn.Module, window: int, shift: int) -> Tensor:
    """Cut a map into windows, attend in each, and put it together again.

    Args:
        x: [B,H,W,C], normalised.
        attention: windows [B,N,w*w,C] and an additive mask [N,w*w,w*w] or None to windows.
        window: w, the side of a window in pixels.
        shift: by how many pixels the windows are moved; 0 for none.
    """
    batch, height, width, dim = x.shape
    w = window
    padded_h, padded_w = -(-height // w) * w, -(-width // w) * w
    y = F.pad(x, (0, 0, 0, padded_w - width, 0, padded_h - height))
    if shift:
        y = torch.roll(y, (-shift, -shift), dims=(1, 2))
    rows, cols = padded_h // w, padded_w // w
    windows = y.view(batch, rows, w, cols, w, dim).permute(0, 1, 3, 2, 4, 5)
    windows = windows.reshape(batch, rows * cols, w * w, dim)
    mask = None
    if shift:
        mask = torch.from_numpy(_shift_mask(padded_h, padded_w, w, shift))
    y = attention(windows, mask)
    y = y.view(batch, rows, cols, w, w, dim).permute(0, 1, 3, 2, 4, 5)
    y = y.reshape(batch, padded_h, padded_w, dim)
    if shift:
        y = torch.roll(y, (shift, shift), dims=(1, 2))
    return y[:, :height, :width]


class _Dense(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dense(x)
        return out


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.self = _WindowAttention(dim, heads, window)
        self.output = _Dense(dim, dim)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = self.output(self.self(windows, mask))
        return out


class _WindowAttention(nn.Module):
    index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("index", relative_index(window), persistent=False)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Windows [B,N,w*w,C], mask [N,w*w,w*w] additive or None."""
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)[None]
        q, k, v = self.query(windows), self.key(windows), self.value(windows)
        return window_attention(q, k, v, bias, mask, self.heads)


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, heads: int
) -> Tensor:
    """Attention inside each window.

    Args:
        q: [B,N,w*w,C], as are `k` and `v`.
        k: see q.
        v: see q.
        bias: [1,heads,w*w,w*w], by relative position.
        mask: [N,w*w,w*w] additive, or None.
        heads: of the attention.
    """
    batch, count, length, dim = q.shape
    shape = (batch, count, length, heads, dim // heads)
    q = q.view(shape).transpose(2, 3)
    k = k.view(shape).transpose(2, 3)
    v = v.view(shape).transpose(2, 3)
    if mask is not None:
        bias = bias + mask[:, None].to(bias)
    scores = torch.matmul(q, k.transpose(-1, -2)) * (dim // heads) ** -0.5
    context = torch.matmul(torch.softmax(scores + bias[None], dim=-1), v)
    return context.transpose(2, 3).reshape(batch, count, length, dim)


def relative_index(window: int) -> Tensor:
    """Row of the bias table for each pair of a window's pixels, int64 [w*w,w*w]."""
    axis = torch.arange(window)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None] + window - 1
    dx = x[:, None] - x[None] + window - 1
    return dy * (2 * window - 1) + dx


@lru_cache(maxsize=64)
def _shift_mask(height: int, width: int, window: int, shift: int) -> NDArray[np.float32]:
    """Additive mask [N,w*w,w*w]: -100 between tokens that the roll brought together.

    In numpy, because the cache would otherwise keep a fake tensor of an export for later calls.
    """
    region = np.zeros((height, width), np.float32)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(bands):
        for j, cols in enumerate(bands):
            region[rows, cols] = 3 * i + j
    cut = region.reshape(height // window, window, width // window, window)
    tiles = cut.transpose(0, 2, 1, 3).reshape(-1, window * window)
    return np.where(tiles[:, None] != tiles[:, :, None], np.float32(-100.0), np.float32(0.0))
