"""Numbers for words linked to places: grounded captions, and a class for every pixel.

The truth of a scene is a phrase for every item, ``a red circle``, and the item's box and pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.benchmarks.clock import Clock
from visionllm_edge.benchmarks.detection_metrics import box_iou
from visionllm_edge.benchmarks.workload import Sample
from visionllm_edge.runtime import shapes_world
from visionllm_edge.runtime.results import Detection, GroundedCaptionResult, SemanticResult
from visionllm_edge.runtime.shapes_world import Item

__all__ = ["GroundingModel", "grounded_caption_metrics", "semantic_metrics"]

_GOOD_IOU = 0.5
# Two boxes of one phrase that overlap by more are the same object.
_SAME_IOU = 0.7


class GroundingModel(Protocol):
    """What these evaluations ask of a model."""

    def grounded_caption(self, image: NDArray[np.uint8]) -> GroundedCaptionResult:
        """Describe a picture, every phrase with its object."""
        ...

    def semantic(self, image: NDArray[np.uint8], classes: Sequence[str]) -> SemanticResult:
        """Give every pixel a class, or none."""
        ...


def grounded_caption_metrics(
    model: GroundingModel, stream: Iterator[Sample], clock: Clock
) -> dict[str, float | int]:
    """Describe each picture with every object found.

    1. ``phrase_f1``, ``phrase_precision``, ``phrase_recall``: phrases that are an item's, counted
       over all pictures; a phrase counts as often as there are items of that name.
    2. ``box_iou``: mean over all items of the IoU with what was found for their phrase, an item
       that was not said or not found counting 0; ``box_iou_said``: over the said items only.
    3. ``grounded``: part of all items with an IoU of at least 0.5.
    4. ``offsets_right``: part of the phrases that stand in the text where their offsets say.
    5. ``complete``: part of the pictures with every item's phrase and no other one.
    """
    said_right = said = wanted = offsets = complete = pictures = 0
    ious: list[float] = []
    ious_said: list[float] = []
    for sample in stream:
        items = sample.scene.items
        with clock:
            result = model.grounded_caption(sample.scene.image)
        truth = Counter(_plain(shapes_world.indefinite(item.name)) for item in items)
        spoken = Counter(_plain(phrase.text) for phrase in result.phrases)
        said_right += (truth & spoken).total()
        said += spoken.total()
        wanted += truth.total()
        pictures += 1
        complete += truth == spoken
        offsets += sum(result.text[p.start : p.end] == p.text for p in result.phrases)
        for name, count in truth.items():
            same = [i for i in items if _plain(shapes_world.indefinite(i.name)) == name]
            groups = {p.group for p in result.phrases if _plain(p.text) == name}
            found = [d for d in result.detections if d.group in groups]
            matched = _matched(same, found)
            ious += matched
            # The items whose phrase was not said are those that were matched worst.
            ious_said += sorted(matched, reverse=True)[: min(count, spoken[name])]
    precision = said_right / said if said else 0.0
    recall = said_right / wanted if wanted else 0.0
    return {
        "phrase_f1": 2 * precision * recall / (precision + recall) if said_right else 0.0,
        "phrase_precision": precision,
        "phrase_recall": recall,
        "box_iou": _mean(ious),
        "box_iou_said": _mean(ious_said),
        "grounded": _mean([iou >= _GOOD_IOU for iou in ious]),
        "offsets_right": offsets / said if said else 0.0,
        "complete": complete / pictures if pictures else 0.0,
        "items": wanted,
    }


def semantic_metrics(
    model: GroundingModel, stream: Iterator[Sample], clock: Clock
) -> dict[str, float | int]:
    """Give every pixel of each picture one of the six shapes, or none.

    1. ``mean_iou``: mean over the shapes of the pixels that are right over the pixels that are or
       should be of that shape, counted over all pictures; ``background_iou``: the same for none.
    2. ``pixels_right``: part of all pixels.
    """
    names = shapes_world.SHAPES
    # Rows are the truth, columns what was said; the last of each is none.
    counts = np.zeros((len(names) + 1, len(names) + 1), np.int64)
    for sample in stream:
        with clock:
            labels = model.semantic(sample.scene.image, names).labels
        truth = np.full(labels.shape, len(names))
        for item in sample.scene.items:
            truth[item.mask] = names.index(item.shape)
        said = np.where(labels < 0, len(names), labels).astype(np.int64)
        np.add.at(counts, (truth, said), 1)
    right = np.diag(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - right
    ious = right / np.maximum(union, 1)
    # A shape that no picture has and nobody says has no IoU.
    shapes = ious[:-1][union[:-1] > 0]
    return {
        "mean_iou": float(shapes.mean()) if len(shapes) else 0.0,
        "background_iou": float(ious[-1]),
        "pixels_right": float(right.sum() / max(1, counts.sum())),
    }


def _matched(items: Sequence[Item], found: Sequence[Detection]) -> list[float]:
    """IoU of every item with one of the best detections, as many of which count as items are."""
    best: list[Detection] = []
    for one in sorted(found, key=lambda detection: -detection.score):
        if len(best) < len(items) and all(
            box_iou(one.box_xyxy, other.box_xyxy) <= _SAME_IOU for other in best
        ):
            best.append(one)
    ious = [0.0] * len(items)
    pairs = sorted(
        (
            (box_iou(item.box_xyxy, one.box_xyxy), i, k)
            for i, item in enumerate(items)
            for k, one in enumerate(best)
        ),
        reverse=True,
    )
    taken_items: set[int] = set()
    taken: set[int] = set()
    for iou, i, k in pairs:
        if i not in taken_items and k not in taken:
            taken_items.add(i)
            taken.add(k)
            ious[i] = iou
    return ious


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _mean(values: Sequence[float] | Sequence[bool]) -> float:
    return float(sum(values)) / len(values) if values else 0.0
