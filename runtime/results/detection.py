"""Found objects: boxes, scores, masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.results.common import Json, drawn, size_dict
from visionllm_edge.runtime.rle import encode_mask

__all__ = ["Detection", "DetectionResult"]


@dataclass(frozen=True)
class Detection:
    """One found object.

    Attributes:
        label: the class name, or the words in front of the routing token.
        score: confidence, 0 to 1.
        box_xyxy: left, top, right, bottom in pixels of the original image; not clipped to it.
        mask: bool [H,W] over the whole original image, or None when none was asked for. It takes
            no part in comparisons.
        group: index of the routing group in the answer that this object belongs to.
    """

    label: str
    score: float
    box_xyxy: tuple[float, float, float, float]
    mask: npt.NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)
    group: int = 0

    def to_dict(self, *, masks: bool = True) -> Json:
        """Plain JSON types; a mask becomes ``mask_rle`` in COCO's compressed form."""
        out: Json = {
            "label": self.label,
            "score": float(self.score),
            "box_xyxy": [float(v) for v in self.box_xyxy],
            "group": int(self.group),
        }
        if masks and self.mask is not None:
            out["mask_rle"] = encode_mask(self.mask)
        return out


@dataclass(frozen=True)
class DetectionResult:
    """Answer of detect, segment and ground.

    Attributes:
        image_size: (height, width) of the original image.
        detections: by descending score.
        text: the answer's words, routing tokens included.
        classes: what was asked for, in order; a detection's ``group`` counts in it.
    """

    image_size: tuple[int, int]
    detections: tuple[Detection, ...]
    text: str = ""
    classes: tuple[str, ...] = ()

    def to_dict(self, *, masks: bool = True) -> Json:
        """Plain JSON types."""
        return {
            "image_size": size_dict(self.image_size),
            "classes": list(self.classes),
            "text": self.text,
            "detections": [d.to_dict(masks=masks) for d in self.detections],
        }

    def to_coco(self, image_id: int, category_ids: Mapping[str, int]) -> list[Json]:
        """Entries of a COCO results file: bbox as x, y, width, height, and RLE where masks are.

        Raises:
            InputError: a detection's label has no category id.
        """
        return [_coco_entry(d, image_id, category_ids) for d in self.detections]

    def draw(self, image: ImageLike) -> Image.Image:
        """The image with boxes, masks and labels; small images are enlarged first."""
        return drawn(image, self.detections, ())


def _coco_entry(found: Detection, image_id: int, category_ids: Mapping[str, int]) -> Json:
    if found.label not in category_ids:
        raise InputError(
            f"COCO export: label {found.label!r} has no category id; expected one of "
            f"{sorted(category_ids)}. Add it to category_ids."
        )
    left, top, right, bottom = (float(v) for v in found.box_xyxy)
    entry: Json = {
        "image_id": int(image_id),
        "category_id": int(category_ids[found.label]),
        "bbox": [left, top, right - left, bottom - top],
        "score": float(found.score),
    }
    if found.mask is not None:
        entry["segmentation"] = encode_mask(found.mask)
    return entry
