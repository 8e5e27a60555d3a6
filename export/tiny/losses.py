"""Training losses of the tiny checkpoint.

The decoder's predictions are matched one to one with the objects (Hungarian, DETR's costs). The
two-stage proposals learn from a dense one-to-many assignment, which is what makes training short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.geometry import Geometry
from visionllm_edge.export.components.object_decoder import DecoderOutput, Proposals
from visionllm_edge.export.tiny.batches import Truth

__all__ = ["Objects", "corners", "decoder_losses", "focal", "giou", "match", "proposal_losses"]

_ALPHA, _GAMMA = 0.25, 2.0
_LARGE_OBJECT = 0.24  # mean side, as a share of the picture, from which stride 16 is used
_POSITIVES_PER_OBJECT = 4


class Objects(Protocol):
    """What matching needs of a picture's truth."""

    @property
    def boxes(self) -> Tensor:
        """[G,4] cxcywh in 0..1."""
        ...

    @property
    def classes(self) -> Tensor:
        """[G,T] 0 or 1."""
        ...


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Sigmoid focal loss per element."""
    p = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    weight = _ALPHA * targets + (1 - _ALPHA) * (1 - targets)
    return weight * (1 - p_t) ** _GAMMA * ce


def corners(boxes: Tensor) -> Tensor:
    """Boxes cxcywh to x0y0x1y1."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of broadcastable boxes x0y0x1y1."""
    area_a = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1)
    area_b = (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    union = area_a + area_b - inter + 1e-7
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = (high - low).clamp(min=0).prod(-1) + 1e-7
    return inter / union - (hull - union) / hull


@torch.no_grad()
def match(output: DecoderOutput, truth: Sequence[Objects]) -> tuple[Tensor, Tensor, Tensor]:
    """One-to-one matches as (picture, query, object) index vectors."""
    pictures, queries, objects = [], [], []
    for b, t in enumerate(truth):
        if not len(t.boxes):
            continue
        p = output.logits[b].sigmoid()
        positive = _ALPHA * (1 - p) ** _GAMMA * -(p + 1e-8).log()
        negative = (1 - _ALPHA) * p**_GAMMA * -(1 - p + 1e-8).log()
        cost_class = (positive - negative) @ t.classes.T / t.classes.sum(-1)
        cost_l1 = torch.cdist(output.boxes[b], t.boxes, p=1)
        overlap = giou(corners(output.boxes[b])[:, None], corners(t.boxes)[None])
        rows, cols = linear_sum_assignment((2 * cost_class + 5 * cost_l1 - 2 * overlap).numpy())
        pictures.append(torch.full((len(rows),), b))
        queries.append(torch.as_tensor(rows))
        objects.append(torch.as_tensor(cols))
    if not pictures:
        empty = torch.zeros(0, dtype=torch.int64)
        return empty, empty, empty
    return torch.cat(pictures), torch.cat(queries), torch.cat(objects)


def decoder_losses(
    outputs: list[DecoderOutput],
    truth: tuple[Truth, ...],
    mask_pixels: Tensor,
    mask_embed: torch.nn.Module,
) -> dict[str, Tensor]:
    """Class, box and mask losses, summed over the decoder layers.

    Args:
        outputs: predictions of every layer.
        truth: per picture.
        mask_pixels: [B,d,H/4,W/4].
        mask_embed: queries to mask embeddings.
    """
    totals = {k: mask_pixels.new_zeros(()) for k in ("class", "l1", "giou", "dice", "bce")}
    count = max(1, sum(len(t.boxes) for t in truth))
    for i, output in enumerate(outputs):
        picture, query, thing = match(output, truth)
        target = torch.zeros_like(output.logits)
        if len(picture):
            pairs = list(zip(picture.tolist(), thing.tolist(), strict=True))
            boxes = torch.stack([truth[b].boxes[g] for b, g in pairs])
            target[picture, query] = torch.stack([truth[b].classes[g] for b, g in pairs])
            masks = torch.stack([truth[b].masks[g] for b, g in pairs])
            found = output.boxes[picture, query]
            totals["l1"] = totals["l1"] + (found - boxes).abs().sum() / count
            overlap = giou(corners(found), corners(boxes))
            totals["giou"] = totals["giou"] + (1 - overlap).sum() / count
            embedding = mask_embed(output.queries[picture, query])
            logits = torch.einsum("nd,ndhw->nhw", embedding, mask_pixels[picture])
            if i == len(outputs) - 1:
                size = (masks.shape[-2], masks.shape[-1])
                logits = F.interpolate(logits[:, None], size, mode="bilinear")[:, 0]
            else:
                masks = F.avg_pool2d(masks[:, None], 4)[:, 0]
            dice, bce = _mask_losses(logits.flatten(1), masks.flatten(1))
            totals["dice"] = totals["dice"] + dice / count
            totals["bce"] = totals["bce"] + bce / count
        totals["class"] = totals["class"] + focal(output.logits, target).sum() / count
    return totals


def _mask_losses(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    p = logits.sigmoid()
    dice = 1 - (2 * (p * masks).sum(1) + 1) / (p.sum(1) + masks.sum(1) + 1)
    # Objects are small: weigh object and background pixels alike.
    bce = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    share = masks.mean(1, keepdim=True).clamp(0.02, 0.98)
    weight = masks * (0.5 / share) + (1 - masks) * (0.5 / (1 - share))
    return dice.sum(), (0.5 * (weight + 1) * bce).mean(1).sum()


def proposal_losses(
    proposals: Proposals, truth: Sequence[Objects], geometry: Geometry
) -> dict[str, Tensor]:
    """Dense one-to-many losses on the encoder's proposals."""
    target = torch.zeros_like(proposals.scores)
    pictures, rows, boxes = [], [], []
    centres = []
    for h, w in geometry.shapes[:2]:
        y, x = (torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w
        y, x = torch.meshgrid(y, x, indexing="ij")
        centres.append(torch.stack([x, y], -1).reshape(-1, 2))
    for b, t in enumerate(truth):
        for box, classes in zip(t.boxes, t.classes, strict=True):
            level = int((box[2] * box[3]).sqrt() > _LARGE_OBJECT)
            offset = (centres[level] - box[:2]).abs() * 2 / box[2:]
            distance = offset.square().sum(-1)
            near = distance.topk(_POSITIVES_PER_OBJECT, largest=False).indices
            inside = (offset[near] < 1).all(-1)
            inside[0] = True
            near = near[inside] + geometry.starts[level]
            target[b, near] = classes
            pictures += [b] * len(near)
            rows.append(near)
            boxes.append(box.expand(len(near), 4))
    if not rows:
        return {"enc_class": focal(proposals.scores, target).mean()}
    picture, row, box = torch.tensor(pictures), torch.cat(rows), torch.cat(boxes)
    found = proposals.box_logits[picture, row].sigmoid()
    count = len(row)
    return {
        "enc_class": focal(proposals.scores, target).sum() / count,
        "enc_l1": (found - box).abs().sum() / count,
        "enc_giou": (1 - giou(corners(found), corners(box))).sum() / count,
    }
