"""Numbers for keypoints: PCK and OKS average precision of the figures in fresh scenes.

Every picture is asked for persons with COCO's 17 keypoints, as a benchmark asks: no threshold and
nothing suppressed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.benchmarks.clock import Clock
from visionllm_edge.benchmarks.detection_metrics import box_iou, require_pycocotools
from visionllm_edge.benchmarks.workload import Sample
from visionllm_edge.runtime.keypoints import PRESETS
from visionllm_edge.runtime.results import Pose, PoseResult
from visionllm_edge.runtime.shapes_world import Item

__all__ = ["PoseModel", "pose_metrics"]

_PERSON = "person"
_NAMES = PRESETS["coco17"].keypoints
# A keypoint is right within this part of the distance from left shoulder to right hip.
_NEAR = 0.2
_MATCH_IOU = 0.5
_VISIBLE = 2
# Annotations have no masks of bodies, and a stick figure's own pixels are not a body's: the area
# that OKS divides by is this part of the box, as CrowdPose takes it.
_BODY_PART = 0.53
_FAR = (-1e6, -1e6)
_SHOULDER, _HIP = _NAMES.index("left shoulder"), _NAMES.index("right hip")


class PoseModel(Protocol):
    """What this evaluation asks of a model."""

    def pose(
        self, image: NDArray[np.uint8], objects: Sequence[str], keypoints: str, *, benchmark: bool
    ) -> PoseResult:
        """Find keypoints of the named objects."""
        ...


@dataclass(frozen=True, eq=False)
class _Judged:
    items: tuple[Item, ...]
    found: PoseResult


def pose_metrics(
    model: PoseModel, stream: Iterator[Sample], clock: Clock
) -> dict[str, float | int]:
    """Find the persons of each picture, and their keypoints.

    1. ``pck_0.2``: part of the visible keypoints that are within 0.2 of the distance from left
       shoulder to right hip. A person's keypoints are those of the best-scoring instance whose box
       covers it (IoU at least 0.5); a person that none covers has no keypoint right.
    2. ``oks_ap``, ``oks_ap50``, ``oks_ap75``: COCO's average precision by object keypoint
       similarity, pictures without persons among them.
    3. ``persons``, ``keypoints``: how many there are, and ``persons_found`` of them.

    Raises:
        EdgeError: pycocotools is not installed.
    """
    require_pycocotools()
    judged: list[_Judged] = []
    for sample in stream:
        with clock:
            found = model.pose(sample.scene.image, [_PERSON], "coco17", benchmark=True)
        judged.append(_Judged(sample.scene.items, found))
    right = visible = persons = covered = 0
    for one in judged:
        for item in one.items:
            if item.keypoints is None:
                continue
            persons += 1
            seen = item.keypoints[:, 2] == _VISIBLE
            visible += int(seen.sum())
            pose = _covering(item, one.found.poses)
            if pose is not None:
                covered += 1
                right += int((_near(item, pose) & seen).sum())
    ap, ap50, ap75 = _average_precision(judged)
    return {
        "pck_0.2": right / visible if visible else 0.0,
        "oks_ap": ap,
        "oks_ap50": ap50,
        "oks_ap75": ap75,
        "persons_found": covered / persons if persons else 0.0,
        "persons": persons,
        "keypoints": visible,
    }


def _covering(item: Item, poses: Sequence[Pose]) -> Pose | None:
    """The best-scoring instance whose box covers the item's."""
    covers = [p for p in poses if box_iou(p.box_xyxy, item.box_xyxy) >= _MATCH_IOU]
    return max(covers, key=lambda pose: pose.score, default=None)


def _near(item: Item, pose: Pose) -> NDArray[np.bool_]:
    assert item.keypoints is not None
    truth = item.keypoints[:, :2].astype(np.float64)
    reach = _NEAR * float(np.hypot(*(truth[_SHOULDER] - truth[_HIP])))
    near: NDArray[np.bool_] = np.hypot(*(np.array(_places(pose)) - truth).T) <= reach
    return near


def _places(pose: Pose) -> list[tuple[float, float]]:
    """A place for each of COCO's keypoints; a name that the model left out is far away."""
    places = {keypoint.name: (keypoint.x, keypoint.y) for keypoint in pose.keypoints}
    return [places.get(name, _FAR) for name in _NAMES]


def _average_precision(judged: Sequence[_Judged]) -> tuple[float, float, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = _dataset(judged)
    entries = [
        {
            "image_id": image_id,
            "category_id": 1,
            "keypoints": [v for x, y in _places(pose) for v in (x, y, 1)],
            "score": pose.score,
        }
        for image_id, one in enumerate(judged, start=1)
        for pose in one.found.poses
    ]
    if not entries or not truth.dataset["annotations"]:
        # pycocotools cannot read an empty list of results.
        return 0.0, 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(entries), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50, ap75 = (float(value) for value in evaluation.stats[:3])
    return ap, ap50, ap75


def _dataset(judged: Sequence[_Judged]) -> dict[str, list[dict[str, object]]]:
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id, one in enumerate(judged, start=1):
        height, width = one.found.image_size
        images.append({"id": image_id, "height": height, "width": width})
        for item in one.items:
            if item.keypoints is None:
                continue
            x0, y0, x1, y1 = item.box_xyxy
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0) * _BODY_PART,
                    "iscrowd": 0,
                    "keypoints": item.keypoints.astype(float).ravel().tolist(),
                    "num_keypoints": int((item.keypoints[:, 2] > 0).sum()),
                }
            )
    category = {"id": 1, "name": _PERSON, "keypoints": list(_NAMES), "skeleton": []}
    return {"images": images, "annotations": annotations, "categories": [category]}
