"""End-to-end check: the compiled chain and the torch model answer the same questions alike.

Both run through the runtime's own pipeline on a fresh scene, so pre- and post-processing are part
of the check. Limits live in `visionllm_edge.export.parity`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.parity import END_TO_END_BOX_PX, END_TO_END_SCORE
from visionllm_edge.export.torch_stages import TorchStages
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import ParityError
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.model import VisionLLM as RuntimeModel
from visionllm_edge.runtime.pipelines.loading import load_pipeline
from visionllm_edge.runtime.results import Detection
from visionllm_edge.runtime.shapes_world import make_scene

__all__ = ["check_end_to_end"]

_SEED = 20_240_609
_CLASSES = ("circle", "person", "red square")
# The compiled chain may rank equally good boxes in another order: ours has this many more.
_TORCH_BOXES, _OUR_BOXES = 8, 16


def check_end_to_end(bundle: Bundle, model: VisionLLM, *, threads: int | None = None) -> Any:
    """Detect with masks and caption, by the bundle and by torch.

    Args:
        bundle: readable, not necessarily published yet.
        model: the torch model in float32.
        threads: of the bundle's backend.

    Returns:
        A report of plain JSON types.

    Raises:
        ParityError: a box or score differs by more than the limits.
    """
    ours = RuntimeModel(load_pipeline(bundle, threads=threads))
    torchs = RuntimeModel(load_pipeline(bundle, stages=TorchStages(model)))
    scene = make_scene(np.random.default_rng(_SEED), width=160, height=128)
    expected = torchs.segment(scene.image, _CLASSES, threshold=0.0, top_k=_TORCH_BOXES)
    got = ours.segment(scene.image, _CLASSES, threshold=0.0, top_k=_OUR_BOXES)
    worst_box, worst_score, worst_iou = 0.0, 0.0, 1.0
    for wanted in expected.detections:
        box, score, iou = _nearest(wanted, list(got.detections))
        worst_box, worst_score = max(worst_box, box), max(worst_score, score)
        worst_iou = min(worst_iou, iou)
    config = GenerationConfig(max_new_tokens=12)
    captions = [m.caption(scene.image, config=config).text for m in (ours, torchs)]
    report = {
        "classes": list(_CLASSES),
        "detections": len(expected.detections),
        "largest_box_difference_px": worst_box,
        "largest_score_difference": worst_score,
        "smallest_mask_iou": worst_iou,
        "caption": captions[0],
        "caption_equals_torch": captions[0] == captions[1],
    }
    if worst_box > END_TO_END_BOX_PX or worst_score > END_TO_END_SCORE:
        raise ParityError(
            f"end to end: boxes differ from torch by up to {worst_box:.3g} px (allowed "
            f"{END_TO_END_BOX_PX}), scores by {worst_score:.3g} (allowed {END_TO_END_SCORE}), "
            "although every stage is right. Nothing was published."
        )
    return report


def _nearest(wanted: Detection, candidates: list[Detection]) -> tuple[float, float, float]:
    """Box difference in px, score difference and mask IoU of the best match of the same label.

    Several queries can share a box, so box and score together say which one is meant.
    """
    best, least = (float("inf"), float("inf"), 0.0), float("inf")
    for candidate in candidates:
        if candidate.label != wanted.label:
            continue
        box = max(abs(a - b) for a, b in zip(candidate.box_xyxy, wanted.box_xyxy, strict=True))
        score = abs(candidate.score - wanted.score)
        distance = max(box / END_TO_END_BOX_PX, score / END_TO_END_SCORE)
        if distance < least:
            iou = 1.0
            if wanted.mask is not None and candidate.mask is not None:
                union = int((wanted.mask | candidate.mask).sum())
                iou = int((wanted.mask & candidate.mask).sum()) / union if union else 1.0
            best, least = (box, score, iou), distance
    return best
