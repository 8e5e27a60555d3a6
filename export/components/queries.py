"""What stands before and between decoder layers: the flattened pyramid, proposals, box embeddings.

Both perception decoders choose their queries among the pixels of a pyramid and describe boxes by
sines; their modules have other key names. Source: Grounding DINO, arXiv 2303.05499.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visionllm_edge.export.components.geometry import Geometry, LevelGeometry, sine_embedding

__all__ = ["Proposals", "best_proposals", "box_embedding", "flatten_levels", "level_positions"]


@dataclass(frozen=True)
class Proposals:
    """Two-stage candidates, one per pixel of the pyramid.

    Attributes:
        scores: [B,S,T] logits against every text.
        box_logits: [B,S,4] boxes before the sigmoid; only training and tests read all of them.
        top: [B,Q] int64 indices of the chosen ones, best first.
        chosen: [B,Q,4] their boxes before the sigmoid.
    """

    scores: Tensor
    box_logits: Tensor
    top: Tensor
    chosen: Tensor


def flatten_levels(projections: nn.ModuleList, maps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Maps at strides 8, 16 and 32 to the pixels [B,S,d] of four levels.

    The last projection makes the fourth level from the last map.
    """
    levels = [project(x) for project, x in zip(projections, (*maps, maps[-1]), strict=True)]
    return torch.cat([x.flatten(2) for x in levels], dim=2).transpose(1, 2)


def level_positions(level: LevelGeometry, level_embed: Tensor, geometry: Geometry) -> Tensor:
    """Position embedding [S,d] of every pixel with that of its level [L,d]."""
    embeds = [level_embed[i].expand(h * w, -1) for i, (h, w) in enumerate(geometry.shapes)]
    return level.positions + torch.cat(embeds)


def best_proposals(
    memory: Tensor,
    text: Tensor,
    level: LevelGeometry,
    *,
    features: Callable[[Tensor], Tensor],
    boxes: Callable[[Tensor], Tensor],
    count: int,
) -> Proposals:
    """Score every pixel against every text and pick the best.

    Args:
        memory: [B,S,d].
        text: [B,T,d], output of the encoder.
        level: sizes.
        features: pixels to what is scored, [B,S,d] to [B,S,d].
        boxes: features to box offsets in logits, [B,S,d] to [B,S,4].
        count: how many to pick.
    """
    found = features(memory * level.proposals_ok[None, :, None])
    scores = torch.matmul(found, text.transpose(1, 2))
    top = torch.topk(scores.amax(dim=-1), count, dim=1).indices
    # Of the chosen alone, so that a graph, which reads no others, computes no others.
    best = torch.gather(found, 1, top[..., None].expand(-1, -1, found.shape[-1]))
    chosen = boxes(best) + level.proposals[top]
    return Proposals(scores, boxes(found) + level.proposals, top, chosen)


def box_embedding(boxes: Tensor, dim: int) -> Tensor:
    """Sine embedding [B,Q,2d] of boxes [B,Q,4] (cx, cy, w, h), in the order (cy, cx, w, h)."""
    turned = torch.stack([boxes[..., i] for i in (1, 0, 2, 3)], dim=-1)
    return sine_embedding(turned * (2 * math.pi), dim // 2, 10000.0).flatten(-2)
