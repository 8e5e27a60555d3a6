"""The keypoint decoder: a picture and hidden states of groups in, poses out.

Two kinds of groups belong together: object classes and keypoint names. The backbone runs once per
picture; encoder, box part and keypoint part run once per question. Only as many slots run as were
asked for: slots that stand for nothing cannot change the others.

Maps and memory go from stage to stage as the backend keeps them; logits, boxes and keypoints come
to the host.

Source: VisionLLM v2 (arXiv 2406.08394), section 3.1 and its keypoint decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.manifest import Normalization, PoseSpec
from visionllm_edge.runtime.pipelines.backbone import Backbone, constants_of
from visionllm_edge.runtime.pipelines.picture import Picture
from visionllm_edge.runtime.pipelines.stages import Stages
from visionllm_edge.runtime.pose_postprocess import select_poses
from visionllm_edge.runtime.preprocess import pose_input
from visionllm_edge.runtime.results import Keypoint, Pose

__all__ = ["BENCHMARK", "PoseDecoder", "PoseSelecting", "pose_from_bundle"]

_STAGES = ("pose_backbone", "pose_encoder", "pose_boxes", "pose_keypoints")


@dataclass(frozen=True)
class PoseSelecting:
    """Which poses are wanted.

    Attributes:
        threshold: smallest score, 0 to 1.
        iou: a pose whose box overlaps a better one by more than this is left out; None: none is.
        top_k: how many at most.
    """

    threshold: float = 0.1
    iou: float | None = 0.9
    top_k: int = 100

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name, good, expected in (
            ("threshold", 0.0 <= self.threshold <= 1.0, "0 to 1"),
            ("nms_iou", self.iou is None or 0.0 <= self.iou <= 1.0, "0 to 1, or none"),
            ("top_k", self.top_k >= 1, "at least 1"),
        ):
            if not good:
                value = self.iou if name == "nms_iou" else getattr(self, name)
                raise InputError(f"{name}: expected {expected}, got {value}. Change the option.")


BENCHMARK = PoseSelecting(threshold=0.0, iou=None)
"""As the authors measure: the best 100 pairs of instance and class, none left out."""


class PoseDecoder:
    """Chains the four ``pose_*`` stages.

    Args:
        stages: of the bundle.
        spec: sizes, from the manifest.
        constants: of the pixels.
    """

    def __init__(self, stages: Stages, spec: PoseSpec, constants: Normalization) -> None:
        """Load nothing yet: the picture decides which bucket is needed."""
        self._stages = stages
        self.spec = spec
        self.backbone = Backbone(
            stages, "pose_backbone", spec, constants, pose_input, levels=(2, 3, 4)
        )

    def find(
        self,
        picture: Picture,
        objects_TND: NDArray[np.float32],  # noqa: N803 (axis letters)
        keypoints_KND: NDArray[np.float32],  # noqa: N803
        labels: Sequence[str],
        names: Sequence[str],
        *,
        groups: Sequence[int],
        selecting: PoseSelecting,
    ) -> list[Pose]:
        """Poses of T object classes with K keypoints each, best first.

        Args:
            picture: its backbone features are made here if it has none yet.
            objects_TND: hidden states of the object classes' groups, float32 ``[T, N, D]``.
            keypoints_KND: hidden states of the keypoint names' groups, float32 ``[K, N, D]``.
            labels: names of the object classes.
            names: names of the keypoints.
            groups: index that the poses of each object class carry.
            selecting: which poses are wanted.

        Raises:
            InputError: more classes or keypoints than the decoder has slots, or none.
            BackendError: the decoder's outputs are not finite.
        """
        self._check(len(objects_TND), len(keypoints_KND))
        features = self.backbone.look_at(picture)
        bucket = features.prepared.bucket
        valid_size = np.array(features.prepared.valid_size, np.int64)
        encoded = self._stages.get("pose_encoder", bucket).run_kept(
            {
                **{f"map{i}": kept for i, kept in enumerate(features.maps, start=2)},
                "valid_size": valid_size,
                "object_states": np.ascontiguousarray(objects_TND[None]),
            }
        )
        memory = {"memory": encoded["memory"], "text": encoded["text"]}
        boxes = self._stages.get("pose_boxes", bucket).run_kept(
            {**memory, "valid_size": valid_size}
        )
        decoded = self._stages.get("pose_keypoints", bucket).run(
            {
                **memory,
                "instances": boxes["instances"],
                "boxes": boxes["boxes"],
                "keypoint_states": np.ascontiguousarray(keypoints_KND[None]),
                "valid_size": valid_size,
            }
        )
        chosen = select_poses(
            decoded["logits"][0].astype(np.float32, copy=False),
            decoded["out_boxes"][0].astype(np.float32, copy=False),
            decoded["keypoints"][0].astype(np.float32, copy=False),
            top_k=selecting.top_k,
            threshold=selecting.threshold,
            iou=selecting.iou,
            image_size=picture.size,
        )
        return [
            Pose(
                label=labels[label],
                score=float(score),
                box_xyxy=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                keypoints=tuple(
                    Keypoint(name, float(x), float(y))
                    for name, (x, y) in zip(names, points, strict=True)
                ),
                group=groups[label],
            )
            for score, label, box, points in zip(
                chosen.scores, chosen.labels, chosen.boxes_xyxy, chosen.keypoints_xy, strict=True
            )
        ]

    def _check(self, objects: int, keypoints: int) -> None:
        for what, given, most in (
            ("object classes", objects, self.spec.max_objects),
            ("keypoints", keypoints, self.spec.max_keypoints),
        ):
            if not 1 <= given <= most:
                raise InputError(
                    f"pose: expected 1 to {most} {what} (the keypoint decoder's slots), got "
                    f"{given}. Ask for {'some' if not given else 'fewer'}."
                )


def pose_from_bundle(bundle: Bundle, stages: Stages) -> PoseDecoder | None:
    """The keypoint decoder of a bundle; None if it has none.

    Raises:
        BundleError: some of its parts are missing.
    """
    spec = bundle.manifest.model.pose
    if spec is None:
        return None
    constants = constants_of(
        bundle, "keypoint decoder", _STAGES, bundle.manifest.preprocessing().pose
    )
    return PoseDecoder(stages, spec, constants)
