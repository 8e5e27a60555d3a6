"""Training losses of the keypoint decoder.

Boxes and classes are matched one to one, as for the object decoder. Keypoints are learnt by every
instance whose box covers a person well, so that each picture teaches more than its few people.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.geometry import Geometry
from visionllm_edge.export.components.object_decoder import DecoderOutput
from visionllm_edge.export.components.pose_decoder import BoxOutput, PoseOutput
from visionllm_edge.export.tiny.losses import corners, focal, giou, match
from visionllm_edge.export.tiny.pose_batches import NAMES, PoseTruth

__all__ = ["box_losses", "box_overlap", "dense_loss", "keypoint_losses", "name_loss"]

_COVERS = 0.5
"""Intersection over union from which an instance learns a person's keypoints."""
_STEP_PX = 16.0
_SPREAD = 0.08
"""Standard deviation in the keypoint similarity, in units of the square root of the box area."""


def box_losses(found: BoxOutput, truth: tuple[PoseTruth, ...]) -> dict[str, Tensor]:
    """Class and box losses of a box layer, before and behind the output norm."""
    plain = _set_losses(found.logits, found.boxes, truth)
    normed = _set_losses(found.normed_logits, found.normed_boxes, truth)
    return {f"box_{name}": plain[name] + normed[name] for name in plain}


def keypoint_losses(
    start: Tensor, outputs: list[PoseOutput], truth: tuple[PoseTruth, ...], size: tuple[int, int]
) -> dict[str, Tensor]:
    """Losses of the keypoint layers.

    Args:
        start: [B,I,4] boxes that the first layer is given.
        outputs: before the first layer, and of each layer.
        truth: per picture.
        size: (height, width) in pixels.
    """
    first, *layers = outputs
    totals: dict[str, Tensor] = {}
    for output in layers:
        for name, value in _set_losses(output.logits, output.boxes, truth).items():
            totals[name] = totals.get(name, torch.zeros(())) + value
    picture, instance, thing = _covered(start, truth)
    pairs = list(zip(picture.tolist(), thing.tolist(), strict=True))
    if not pairs:
        return totals
    points = torch.stack([truth[b].keypoints[g] for b, g in pairs])
    boxes = torch.stack([truth[b].boxes[g] for b, g in pairs])
    scale = torch.tensor([float(size[1]), float(size[0])])
    known = (points[..., 2] > 0).float()
    side = (boxes[:, 2:] * scale).prod(-1).sqrt()[:, None]
    count = known.sum().clamp(min=1)

    def apart(output: PoseOutput) -> Tensor:
        found = output.keypoints[picture, instance]
        return (found - points[..., :2]) * scale / side[..., None]

    totals["start"] = (apart(first).abs().sum(-1) * known).sum() / count
    for output in layers:
        distance = apart(output)
        l1 = (distance.abs().sum(-1) * known).sum() / count
        similar = torch.exp(-distance.square().sum(-1) / (2 * _SPREAD**2))
        oks = ((1 - similar) * known).sum() / count
        totals["point"] = totals.get("point", torch.zeros(())) + l1
        totals["oks"] = totals.get("oks", torch.zeros(())) + oks
    return totals


def box_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [A,B] of boxes cxcywh [A,4] and [B,4]."""
    a, b = corners(a)[:, None], corners(b)[None]
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    area_a, area_b = (x[..., 2:] - x[..., :2] for x in (a, b))
    return inter / (area_a.prod(-1) + area_b.prod(-1) - inter + 1e-9)


@torch.no_grad()
def _covered(boxes: Tensor, truth: tuple[PoseTruth, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Instances with the person they cover best, as (picture, instance, thing) index vectors."""
    found = []
    for b, t in enumerate(truth):
        if not len(t.boxes):
            continue
        has_points = (t.keypoints[..., 2] > 0).any(-1)
        overlap = box_overlap(boxes[b], t.boxes) * has_points
        best, thing = overlap.max(-1)
        instance = (best > _COVERS).nonzero()[:, 0]
        found.append((torch.full_like(instance, b), instance, thing[instance]))
    if not found:
        empty = torch.zeros(0, dtype=torch.int64)
        return empty, empty, empty
    picture, instance, thing = (torch.cat(parts) for parts in zip(*found, strict=True))
    return picture, instance, thing


def _set_losses(logits: Tensor, boxes: Tensor, truth: tuple[PoseTruth, ...]) -> dict[str, Tensor]:
    """Focal class loss, L1 and GIoU of the one-to-one matches."""
    picture, query, thing = match(DecoderOutput(logits, logits, boxes), truth)
    target = torch.zeros_like(logits)
    count = max(1, sum(len(t.boxes) for t in truth))
    zero = logits.new_zeros(())
    out = {"l1": zero, "giou": zero}
    if len(picture):
        pairs = list(zip(picture.tolist(), thing.tolist(), strict=True))
        wanted = torch.stack([truth[b].boxes[g] for b, g in pairs])
        target[picture, query] = torch.stack([truth[b].classes[g] for b, g in pairs])
        found = boxes[picture, query]
        out["l1"] = (found - wanted).abs().sum() / count
        out["giou"] = (1 - giou(corners(found), corners(wanted))).sum() / count
    out["class"] = focal(logits, target).sum() / count
    return out


def name_loss(logits: Tensor, chosen: Tensor) -> Tensor:
    """Cross entropy of which keypoint each name means: logits [B,K,17], chosen [K]."""
    return F.cross_entropy(logits.flatten(0, 1), chosen.repeat(len(logits)))


def dense_loss(
    found: Tensor, truth: tuple[PoseTruth, ...], geometry: Geometry, size: tuple[int, int]
) -> Tensor:
    """Every pixel of the pyramid inside a person's box says where all its keypoints are.

    Args:
        found: [B,S,34] steps from the pixel to each keypoint, in units of `_STEP_PX`.
        truth: per picture.
        geometry: of the pictures.
        size: (height, width) in pixels.
    """
    scale = torch.tensor([float(size[1]), float(size[0])])
    cells = []
    for h, w in geometry.shapes[:2]:
        y, x = (torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w
        y, x = torch.meshgrid(y, x, indexing="ij")
        cells.append(torch.stack([x, y], -1).reshape(-1, 2))
    centres = torch.cat(cells)
    total, count = found.new_zeros(()), 0
    for b, t in enumerate(truth):
        for points, box in zip(t.everyone, t.everywhere, strict=True):
            inside = ((centres > box[:2]) & (centres < box[2:])).all(-1).nonzero()[:, 0]
            steps = (points[None] - centres[inside][:, None]) * scale / _STEP_PX
            total = total + (found[b, inside].view(-1, len(NAMES), 2) - steps).abs().sum()
            count += len(inside) * len(NAMES)
    return total / max(1, count)
