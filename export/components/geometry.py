"""Everything in the object decoder that depends on image sizes alone.

One :class:`Geometry` belongs to one padded size (a bucket). The un-padded size comes in as a tensor
``valid_size`` int64 [2] = (height, width), so one graph serves every image that fits its bucket.
Padding is always at the bottom and the right, so masks are outer products of two vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Geometry", "LevelGeometry", "inverse_sigmoid", "sine_embedding"]

# Logit that stands for +infinity: sigmoid of it is exactly 1 in every float type we use.
INVALID_LOGIT = 1e4


@dataclass(frozen=True)
class LevelGeometry:
    """Tensors of the flattened pyramid, S = sum of h_l * w_l.

    Attributes:
        mask: [S] float, 1 where a pixel belongs to the image.
        valid_ratios: [L,2] float, (x, y) share of each level that is image.
        positions: [S,d] float sine embedding (level embedding not included).
        reference: [S,2] float, pixel centres in units of the un-padded image, (x, y).
        proposals: [S,4] float, logits of the two-stage proposals (cx, cy, w, h).
        proposals_ok: [S] float, 1 where a proposal may be used.
    """

    mask: Tensor
    valid_ratios: Tensor
    positions: Tensor
    reference: Tensor
    proposals: Tensor
    proposals_ok: Tensor


class Geometry:
    """Sizes of the four feature levels of a padded image of ``height`` x ``width`` pixels."""

    def __init__(self, height: int, width: int) -> None:
        """Strides 8, 16 and 32, and a fourth level made by a stride-2 convolution."""
        self.height, self.width = height, width
        shapes = [(-(-height // s), -(-width // s)) for s in (8, 16, 32)]
        last = shapes[-1]
        shapes.append(((last[0] - 1) // 2 + 1, (last[1] - 1) // 2 + 1))
        self.shapes: tuple[tuple[int, int], ...] = tuple(shapes)
        counts = [h * w for h, w in shapes]
        self.starts: tuple[int, ...] = tuple(sum(counts[:i]) for i in range(len(counts)))
        self.size = sum(counts)

    def spatial_shapes(self) -> Tensor:
        """[L,2] int32, (height, width) of each level."""
        return torch.tensor(self.shapes, dtype=torch.int32)

    def level_start_index(self) -> Tensor:
        """[L] int32, first row of each level in the flattened pyramid."""
        return torch.tensor(self.starts, dtype=torch.int32)

    def full_size(self) -> Tensor:
        """The ``valid_size`` of an image that fills the bucket."""
        return torch.tensor([self.height, self.width], dtype=torch.int64)

    def levels(self, valid_size: Tensor, dim: int, temperature: float) -> LevelGeometry:
        """All size-dependent tensors.

        Args:
            valid_size: int64 [2], un-padded (height, width), at least 1 pixel each.
            dim: model width; the sine embedding gives half of it to each axis.
            temperature: of the sine embedding.
        """
        masks, ratios, positions, references, proposals, usable = [], [], [], [], [], []
        for level, (h, w) in enumerate(self.shapes):
            # Nearest resize of the pixel mask: row i looks at source row floor(i * H / h).
            rows = (torch.arange(h) * self.height // h < valid_size[0]).to(torch.float32)
            cols = (torch.arange(w) * self.width // w < valid_size[1]).to(torch.float32)
            mask = (rows[:, None] * cols[None]).flatten()
            valid_h, valid_w = rows.sum(), cols.sum()
            ratio = torch.stack([valid_w / w, valid_h / h])
            y = _cumulative(rows, cols, valid_h)
            x = _cumulative(cols, rows, valid_w).transpose(0, 1)
            half = dim // 2
            pos = torch.cat(
                [sine_embedding(y, half, temperature), sine_embedding(x, half, temperature)], dim=-1
            )
            centre_y = ((torch.arange(h) + 0.5) / valid_h)[:, None].expand(h, w)
            centre_x = ((torch.arange(w) + 0.5) / valid_w)[None].expand(h, w)
            centres = torch.stack([centre_x, centre_y], dim=-1).reshape(h * w, 2)
            boxes = torch.cat([centres, torch.full((h * w, 2), 0.05 * 2.0**level)], dim=-1)
            inside = ((boxes > 0.01) & (boxes < 0.99)).to(torch.float32).amin(dim=-1) * mask
            clamped = boxes.clamp(0.01, 0.99)
            logits = torch.log(clamped / (1 - clamped))
            proposals.append(torch.where(inside[:, None] > 0, logits, INVALID_LOGIT))
            masks.append(mask)
            ratios.append(ratio)
            positions.append(pos.reshape(h * w, dim))
            references.append(centres)
            usable.append(inside)
        return LevelGeometry(
            mask=torch.cat(masks),
            valid_ratios=torch.stack(ratios),
            positions=torch.cat(positions),
            reference=torch.cat(references),
            proposals=torch.cat(proposals),
            proposals_ok=torch.cat(usable),
        )


def _cumulative(axis: Tensor, other: Tensor, count: Tensor) -> Tensor:
    """Normalised cumulative sum of the mask along ``axis`` (first dimension), times 2 pi."""
    steps = torch.minimum(torch.arange(1, axis.shape[0] + 1).to(torch.float32), count)
    return steps[:, None] * other[None] / (count * other[None] + 1e-6) * (2 * math.pi)


def sine_embedding(angles: Tensor, features: int, temperature: float) -> Tensor:
    """Interleaved sin/cos embedding of angles [...] (radians): [..., features]."""
    k = torch.arange(features)
    frequency = temperature ** (2 * torch.div(k, 2, rounding_mode="floor") / features)
    phase = angles[..., None] / frequency
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], dim=-1).flatten(-2)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of x in [0,1]; both sides are kept above ``eps``."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
