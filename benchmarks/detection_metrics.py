"""Numbers for boxes and masks: COCO average precision and mask IoU.

Average precision is pycocotools' own (extra ``bench``); this module only feeds it and keeps its
prints off standard output, which belongs to the result.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.errors import EdgeError
from visionllm_edge.runtime.results import Detection, DetectionResult
from visionllm_edge.runtime.rle import encode_mask
from visionllm_edge.runtime.shapes_world import Item, matches

__all__ = [
    "AveragePrecision",
    "Judged",
    "MaskIou",
    "average_precision",
    "box_iou",
    "mask_iou",
    "require_pycocotools",
]

MATCH_BOX_IOU = 0.5
MATCH_SCORE = 0.3


@dataclass(frozen=True, eq=False)
class Judged:
    """One picture: what is in it, which names were asked for, and what the model found."""

    items: tuple[Item, ...]
    names: tuple[str, ...]
    found: DetectionResult


@dataclass(frozen=True)
class AveragePrecision:
    """COCO average precision, mean over the class names that occur.

    Attributes:
        ap: Mean over IoU thresholds 0.50 to 0.95 in steps of 0.05.
        ap50: At IoU 0.50.
        ap75: At IoU 0.75.
    """

    ap: float
    ap50: float
    ap75: float


@dataclass(frozen=True)
class MaskIou:
    """IoU of masks with the true visible masks, over the items that were asked for.

    An item is matched by a detection of its name with a score of at least 0.3 and a box IoU of at
    least 0.5; each detection matches one item, higher scores first.

    Attributes:
        matched: Mean over matched items; 0 if there are none.
        with_misses_as_zero: Mean over all items, an unmatched one counting 0.
        recall: Part of the items that is matched.
        items: How many items there are.
    """

    matched: float
    with_misses_as_zero: float
    recall: float
    items: int


def require_pycocotools() -> None:
    """Check that average precision can be computed, before a long evaluation starts.

    Raises:
        EdgeError: pycocotools is not installed.
    """
    try:
        import pycocotools.mask  # noqa: F401  (asked for its presence)
    except ImportError as error:
        raise EdgeError(
            "average precision needs pycocotools, which is not installed. "
            "Run: pip install 'visionllm-edge[bench]'"
        ) from error


def average_precision(
    judged: Sequence[Judged], *, kind: Literal["bbox", "segm"] = "bbox"
) -> AveragePrecision:
    """Average precision of boxes or masks over all pictures.

    A name counts in a picture only if it was asked for there.

    Raises:
        EdgeError: pycocotools is not installed.
    """
    require_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    names = sorted({name for one in judged for name in one.names})
    category_ids = {name: i + 1 for i, name in enumerate(names)}
    truth = COCO()
    truth.dataset = _dataset(judged, category_ids)
    entries = [
        entry
        for image_id, one in enumerate(judged, start=1)
        for entry in one.found.to_coco(image_id, category_ids)
    ]
    if not entries or not truth.dataset["annotations"]:
        # pycocotools cannot read an empty list of results.
        return AveragePrecision(0.0, 0.0, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(entries), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50, ap75 = (float(value) for value in evaluation.stats[:3])
    return AveragePrecision(ap, ap50, ap75)


def _dataset(
    judged: Sequence[Judged], category_ids: dict[str, int]
) -> dict[str, list[dict[str, object]]]:
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id, one in enumerate(judged, start=1):
        height, width = one.found.image_size
        images.append({"id": image_id, "height": height, "width": width})
        for name in one.names:
            for item in one.items:
                if matches(name, item):
                    x0, y0, x1, y1 = item.box_xyxy
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": image_id,
                            "category_id": category_ids[name],
                            "bbox": [x0, y0, x1 - x0, y1 - y0],
                            "area": float(item.mask.sum()),
                            "iscrowd": 0,
                            "segmentation": encode_mask(item.mask),
                        }
                    )
    categories: list[dict[str, object]] = [
        {"id": number, "name": name} for name, number in category_ids.items()
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def mask_iou(judged: Sequence[Judged]) -> MaskIou:
    """Mask IoU over all items that were asked for; the detections must carry masks."""
    matched: list[float] = []
    items = 0
    for one in judged:
        for name in one.names:
            wanted = [item for item in one.items if matches(name, item)]
            items += len(wanted)
            matched += _matched_ious(wanted, [d for d in one.found.detections if d.label == name])
    total = sum(matched)
    return MaskIou(
        matched=total / len(matched) if matched else 0.0,
        with_misses_as_zero=total / items if items else 0.0,
        recall=len(matched) / items if items else 0.0,
        items=items,
    )


def _matched_ious(wanted: Sequence[Item], found: Sequence[Detection]) -> list[float]:
    left = list(wanted)
    ious: list[float] = []
    for detection in sorted(found, key=lambda d: -d.score):
        if detection.score < MATCH_SCORE or not left:
            break
        overlaps = [box_iou(item.box_xyxy, detection.box_xyxy) for item in left]
        best = int(np.argmax(overlaps))
        if overlaps[best] >= MATCH_BOX_IOU:
            if detection.mask is None:
                raise TypeError("mask IoU needs detections with masks")
            ious.append(_mask_iou(left.pop(best).mask, detection.mask))
    return ious


def box_iou(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> float:
    """Intersection over union of two boxes (left, top, right, bottom); 0 where they are apart."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def _mask_iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    union = int((one | other).sum())
    return float((one & other).sum()) / union if union else 0.0
