"""From the keypoint decoder's raw outputs to poses in the original picture.

Source: VisionLLM v2 (arXiv 2406.08394), evaluation of keypoints: top-k over instance x class. The
score threshold and the suppression of near-equal boxes are additions of products, which a benchmark
leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.postprocess import select

__all__ = ["PoseSelection", "distinct_boxes", "select_poses"]

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PoseSelection:
    """The k best pairs of instance and class, best first; all arrays have k rows.

    Attributes:
        scores: float32 [k], 0..1.
        labels: int64 [k], index of the object class.
        boxes_xyxy: float32 [k,4] in pixels of the original picture; may reach beyond it.
        keypoints_xy: float32 [k,K,2] in the same pixels.
    """

    scores: Float
    labels: Int
    boxes_xyxy: Float
    keypoints_xy: Float


def select_poses(
    logits: Float,
    boxes: Float,
    keypoints: Float,
    *,
    top_k: int,
    threshold: float,
    iou: float | None,
    image_size: tuple[int, int],
) -> PoseSelection:
    """The best pairs of instance and class.

    Args:
        logits: [I,No].
        boxes: [I,4], centre x, centre y, width, height as parts of the un-padded picture.
        keypoints: [I,K,2], x and y as parts of the un-padded picture.
        top_k: how many pairs at most.
        threshold: smallest score (0 keeps all).
        iou: a box that overlaps a better one by more than this is left out, whatever its class:
            it is the same object once more. None leaves nothing out.
        image_size: (height, width) of the original picture.

    Raises:
        BackendError: the outputs hold values that are not numbers.
    """
    finite = np.isfinite(keypoints).all() and np.isfinite(boxes).all()
    if not finite or np.isnan(logits).any():
        raise BackendError(
            "pose decoder: its logits, boxes or keypoints are not finite, so there is nothing to "
            "select from. Run `visionllm-edge verify` on the bundle."
        )
    chosen = select(logits, boxes, top_k=top_k, threshold=threshold, image_size=image_size)
    every = np.arange(len(chosen.scores))
    kept = every if iou is None else distinct_boxes(chosen.boxes_xyxy, iou)
    height, width = image_size
    scale = np.array([width, height], dtype=np.float32)
    return PoseSelection(
        scores=chosen.scores[kept],
        labels=chosen.labels[kept],
        boxes_xyxy=chosen.boxes_xyxy[kept],
        keypoints_xy=keypoints[chosen.queries[kept]].astype(np.float32) * scale,
    )


def distinct_boxes(boxes_xyxy: Float, iou: float) -> Int:
    """Rows of boxes [k,4], best first, none of which overlaps a kept better one by more than that.

    Returns:
        int64 [m], ascending.
    """
    kept: list[int] = []
    for row, box in enumerate(boxes_xyxy):
        if not kept or (_overlaps(box, boxes_xyxy[kept]) <= iou).all():
            kept.append(row)
    return np.array(kept, dtype=np.int64)


def _overlaps(box: Float, others: Float) -> Float:
    """IoU [m] of one box [4] with others [m,4]; 0 where both are empty."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = np.clip(others[:, 2:] - others[:, :2], 0, None).prod(axis=1)
    union = areas + np.clip(box[2:] - box[:2], 0, None).prod() - shared
    out: Float = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return out
