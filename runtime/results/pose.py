"""Found instances with their keypoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.results.common import Json, drawn, size_dict

__all__ = ["Keypoint", "Pose", "PoseResult"]


@dataclass(frozen=True)
class Keypoint:
    """One named place, in pixels of the original image."""

    name: str
    x: float
    y: float

    def to_dict(self) -> Json:
        """Plain JSON types."""
        return {"name": self.name, "x": float(self.x), "y": float(self.y)}


@dataclass(frozen=True)
class Pose:
    """One instance.

    Attributes:
        label: its object class.
        score: confidence of the instance, 0 to 1; keypoints have none of their own.
        box_xyxy: left, top, right, bottom in pixels of the original image.
        keypoints: in the order asked for.
        group: index of the object class in what was asked.
    """

    label: str
    score: float
    box_xyxy: tuple[float, float, float, float]
    keypoints: tuple[Keypoint, ...]
    group: int = 0

    def to_dict(self) -> Json:
        """Plain JSON types."""
        return {
            "label": self.label,
            "score": float(self.score),
            "box_xyxy": [float(v) for v in self.box_xyxy],
            "keypoints": [k.to_dict() for k in self.keypoints],
            "group": int(self.group),
        }


@dataclass(frozen=True)
class PoseResult:
    """Answer of pose.

    Attributes:
        image_size: (height, width) of the original image.
        poses: by descending score.
        text: the answer's words, routing tokens included.
        classes: object classes asked for, in order.
        keypoint_names: keypoints asked for, in order.
    """

    image_size: tuple[int, int]
    poses: tuple[Pose, ...]
    text: str = ""
    classes: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()

    def to_dict(self) -> Json:
        """Plain JSON types."""
        return {
            "image_size": size_dict(self.image_size),
            "classes": list(self.classes),
            "keypoint_names": list(self.keypoint_names),
            "text": self.text,
            "poses": [p.to_dict() for p in self.poses],
        }

    def to_coco(self, image_id: int, category_ids: Mapping[str, int]) -> list[Json]:
        """Entries of a COCO keypoint results file: x, y, v triplets, v always 1.

        Raises:
            InputError: a label has no category id.
        """
        return [_coco_entry(pose, image_id, category_ids) for pose in self.poses]

    def draw(self, image: ImageLike) -> Image.Image:
        """The image with boxes, keypoints and the lines between them."""
        return drawn(image, (), (), self.poses)


def _coco_entry(pose: Pose, image_id: int, category_ids: Mapping[str, int]) -> Json:
    if pose.label not in category_ids:
        raise InputError(
            f"COCO export: label {pose.label!r} has no category id; expected one of "
            f"{sorted(category_ids)}. Add it to category_ids."
        )
    return {
        "image_id": int(image_id),
        "category_id": int(category_ids[pose.label]),
        "keypoints": [v for k in pose.keypoints for v in (float(k.x), float(k.y), 1)],
        "score": float(pose.score),
    }
