"""What a task answers: typed results, their JSON form, their COCO form, their picture.

Boxes are in pixels of the original image, x to the right and y down. Sizes are (height, width).
A result knows nothing of models, bundles or backends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.rle import encode_mask

__all__ = ["ChatResult", "Detection", "DetectionResult", "Result", "Span", "TextResult"]

Json = dict[str, object]


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
class Span:
    """One routing group of an answer: which token, which words it names, and its place in order."""

    routing: str
    label: str
    index: int

    def to_dict(self) -> Json:
        """Plain JSON types."""
        return {"routing": self.routing, "label": self.label, "index": self.index}


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
            "image_size": _size_dict(self.image_size),
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
        return _drawn(image, self.detections, ())


@dataclass(frozen=True)
class TextResult:
    """Answer of caption and vqa.

    Attributes:
        text: the answer.
        question: what was asked, None for a caption.
        finish_reason: ``stop`` (the model ended its answer) or ``length`` (the token limit did).
    """

    text: str
    question: str | None = None
    finish_reason: str = "stop"

    def to_dict(self) -> Json:
        """Plain JSON types."""
        return {
            "text": self.text,
            "question": self.question,
            "finish_reason": self.finish_reason,
        }

    def draw(self, image: ImageLike) -> Image.Image:
        """The image with the words in a strip below it."""
        return _drawn(image, (), _lines(self.question, self.text))


@dataclass(frozen=True)
class ChatResult:
    """One answer of a conversation, with whatever its routing tokens found.

    Attributes:
        text: the answer's words, routing tokens included.
        spans: the routing groups in textual order.
        detections: by descending score over all groups.
        image_size: (height, width) of the original image.
        question: what was asked.
        finish_reason: ``stop`` or ``length``, as in :class:`TextResult`.
    """

    text: str
    spans: tuple[Span, ...] = ()
    detections: tuple[Detection, ...] = ()
    image_size: tuple[int, int] | None = None
    question: str | None = None
    finish_reason: str = "stop"

    def to_dict(self, *, masks: bool = True) -> Json:
        """Plain JSON types."""
        return {
            "text": self.text,
            "question": self.question,
            "finish_reason": self.finish_reason,
            "image_size": None if self.image_size is None else _size_dict(self.image_size),
            "spans": [s.to_dict() for s in self.spans],
            "detections": [d.to_dict(masks=masks) for d in self.detections],
        }

    def draw(self, image: ImageLike) -> Image.Image:
        """The image with what was found, and the words in a strip below it."""
        return _drawn(image, self.detections, _lines(self.question, self.text))


Result = DetectionResult | TextResult | ChatResult


def _size_dict(size: tuple[int, int]) -> dict[str, int]:
    return {"height": int(size[0]), "width": int(size[1])}


def _lines(question: str | None, text: str) -> tuple[str, ...]:
    return (text,) if question is None else (f"Q: {question}", f"A: {text}")


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


def _drawn(image: ImageLike, detections: Sequence[Detection], lines: Sequence[str]) -> Image.Image:
    from visionllm_edge.runtime.draw import draw_result  # draw needs Detection from this module

    return draw_result(image, detections, lines)
