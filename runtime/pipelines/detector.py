"""The object decoder: features of a picture and hidden states of groups in, objects out.

The backbone runs once per picture. Encoder and decoder run once per question. The mask head runs
on the selected queries only: all of them at a real size would be the largest tensor of the chain.

Maps and memory go from stage to stage as the backend keeps them; logits, boxes, queries and masks
come to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime import postprocess
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.manifest import DetectorSpec, Normalization
from visionllm_edge.runtime.pipelines.backbone import Backbone, constants_of
from visionllm_edge.runtime.pipelines.picture import DetectorFeatures, Picture
from visionllm_edge.runtime.pipelines.stages import Stages
from visionllm_edge.runtime.ports import Tensor
from visionllm_edge.runtime.preprocess import detector_input
from visionllm_edge.runtime.results import Detection
from visionllm_edge.runtime.semantic import SemanticSum, sigmoid

__all__ = ["Detector", "detector_from_bundle"]

_STAGES = ("det_backbone", "det_encoder", "det_decoder", "det_masks")
# A mask at a real size takes 0.3 MB, and a real model has 900 queries.
_QUERIES_AT_ONCE = 100
_MOST_CLASSES = 256


@dataclass(frozen=True)
class _Decoded:
    """What the decoder said about a picture; queries are needed for masks."""

    features: DetectorFeatures
    memory: Tensor
    logits_QT: NDArray[np.float32]  # noqa: N815 (axis letters)
    boxes_Q4: NDArray[np.float32]  # noqa: N815
    queries_1Qd: NDArray[np.generic]  # noqa: N815


class Detector:
    """Chains the four ``det_*`` stages.

    Args:
        stages: of the bundle.
        spec: sizes, from the manifest.
        constants: of the pixels.
    """

    def __init__(self, stages: Stages, spec: DetectorSpec, constants: Normalization) -> None:
        """Load nothing yet: the picture decides which bucket is needed."""
        self._stages = stages
        self.spec = spec
        self.backbone = Backbone(
            stages, "det_backbone", spec, constants, detector_input, levels=(1, 2, 3, 4)
        )

    def find(
        self,
        picture: Picture,
        hidden_TND: NDArray[np.float32],  # noqa: N803 (axis letters)
        labels: Sequence[str],
        *,
        groups: Sequence[int],
        threshold: float,
        top_k: int,
        masks: bool,
        best_of_each: bool = False,
    ) -> list[Detection]:
        """Objects of T groups, best first.

        Args:
            picture: its backbone features are made here if it has none yet.
            hidden_TND: super-link hidden states, float32 ``[T, N, D]``.
            labels: what each group is called.
            groups: index that each group's detections carry.
            threshold: smallest score.
            top_k: how many at most, over all groups.
            masks: also run the mask head.
            best_of_each: exactly one object of every group, in their order, whatever its score.
        """
        decoded = self._decode(picture, hidden_TND)
        if best_of_each:
            chosen = postprocess.best_of_each(
                decoded.logits_QT, decoded.boxes_Q4, image_size=picture.size
            )
        else:
            chosen = postprocess.select(
                decoded.logits_QT,
                decoded.boxes_Q4,
                top_k=top_k,
                threshold=threshold,
                image_size=picture.size,
            )
        found: list[NDArray[np.bool_] | None] = [None] * len(chosen.scores)
        if masks and len(chosen.scores):
            queries, row = np.unique(chosen.queries, return_inverse=True)
            full = postprocess.masks(
                self._mask_logits(decoded, queries),
                valid_size=decoded.features.prepared.valid_size,
                original_size=picture.size,
            )
            found = [full[index] for index in row]
        return [
            Detection(
                label=labels[label],
                score=float(score),
                box_xyxy=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                mask=mask,
                group=groups[label],
            )
            for score, label, box, mask in zip(
                chosen.scores, chosen.labels, chosen.boxes_xyxy, found, strict=True
            )
        ]

    def semantic(
        self,
        picture: Picture,
        hidden_TND: NDArray[np.float32],  # noqa: N803 (axis letters)
        *,
        threshold: float,
    ) -> NDArray[np.int16]:
        """The class of every pixel, int16 ``[H, W]`` of the picture; -1 is none.

        Every query takes part, so the mask head runs on all of them, a few at a time.

        Args:
            picture: as in :meth:`find`.
            hidden_TND: super-link hidden states of the classes, float32 ``[T, N, D]``.
            threshold: smallest sum of scores that makes a pixel belong to a class; 0: all do.
        """
        decoded = self._decode(picture, hidden_TND)
        scores_QT = sigmoid(decoded.logits_QT)  # noqa: N806 (axis letters)
        total = SemanticSum(
            scores_QT.shape[1],
            valid_size=decoded.features.prepared.valid_size,
            original_size=picture.size,
        )
        for first in range(0, len(scores_QT), _QUERIES_AT_ONCE):
            queries = np.arange(first, min(first + _QUERIES_AT_ONCE, len(scores_QT)))
            total.add(scores_QT[queries], self._mask_logits(decoded, queries))
        return total.labels(threshold)

    def _decode(
        self,
        picture: Picture,
        hidden_TND: NDArray[np.float32],  # noqa: N803 (axis letters)
    ) -> _Decoded:
        features = self.backbone.look_at(picture)
        bucket = features.prepared.bucket
        valid_size = np.array(features.prepared.valid_size, np.int64)
        encoded = self._stages.get("det_encoder", bucket).run_kept(
            {
                **{f"map{level}": features.maps[level - 1] for level in (2, 3, 4)},
                "valid_size": valid_size,
                "text_states": np.ascontiguousarray(hidden_TND[None]),
            }
        )
        decoded = self._stages.get("det_decoder", bucket).run(
            {"memory": encoded["memory"], "text": encoded["text"], "valid_size": valid_size}
        )
        return _Decoded(
            features,
            encoded["memory"],
            decoded["logits"][0].astype(np.float32, copy=False),
            decoded["boxes"][0].astype(np.float32, copy=False),
            decoded["queries"],
        )

    def _mask_logits(
        self, decoded: _Decoded, queries: NDArray[np.signedinteger]
    ) -> NDArray[np.float32]:
        """Masks ``[k, h, w]`` of some queries, at stride 4 of the padded input."""
        logits: NDArray[np.float32] = self._stages.get(
            "det_masks", decoded.features.prepared.bucket
        ).run(
            {
                "map1": decoded.features.maps[0],
                "memory": decoded.memory,
                "queries": np.ascontiguousarray(decoded.queries_1Qd[:, queries]),
            }
        )["masks"][0]
        return logits.astype(np.float32, copy=False)


def detector_from_bundle(bundle: Bundle, stages: Stages) -> Detector | None:
    """The object decoder of a bundle; None if it has none.

    Raises:
        BundleError: some of its parts are missing.
    """
    spec = bundle.manifest.model.detector
    if spec is None:
        return None
    constants = constants_of(bundle, "detector", _STAGES, bundle.manifest.preprocessing().detector)
    spec = replace(spec, max_text_len=min(spec.max_text_len, _MOST_CLASSES))
    return Detector(stages, spec, constants)
