"""Numbers for visual prompts: what is said of a region, and the mask of what it points at.

Each item of a fresh scene is pointed at as a user would: with a box around it, a click on it, a
scribble over it, a rough outline, or its mask. The kinds take turns, so each has its own number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.benchmarks.clock import Clock
from visionllm_edge.benchmarks.workload import Sample
from visionllm_edge.runtime import shapes_world
from visionllm_edge.runtime.regions import Box, Mask, Point, Polygon, Region, Scribble
from visionllm_edge.runtime.results import DetectionResult, TextResult
from visionllm_edge.runtime.shapes_world import Item

__all__ = ["KINDS", "RegionModel", "interactive_metrics", "pointer", "region_metrics"]

KINDS = ("box", "point", "scribble", "polygon", "mask")
_JITTER = 0.05
_CORNERS = 12
_CLASSES = 6
_GOOD_IOU = 0.5


class RegionModel(Protocol):
    """What these evaluations ask of a model."""

    def describe(self, image: NDArray[np.uint8], region: Region) -> TextResult:
        """Say what a region shows."""
        ...

    def classify_region(
        self, image: NDArray[np.uint8], region: Region, classes: Sequence[str]
    ) -> TextResult:
        """Say which class a region shows."""
        ...

    def segment(self, image: NDArray[np.uint8], *, regions: Sequence[Region]) -> DetectionResult:
        """Find the object that each region points at."""
        ...


def region_metrics(
    model: RegionModel, stream: Iterator[Sample], clock: Clock
) -> dict[str, float | int]:
    """Describe and classify one item of each picture.

    A description is right if it names colour and shape as the truth does, word for word but for
    capitals and a final full stop. The classes are the item's name and five others, most of which
    share its shape or colour.
    """
    said: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    chosen: list[bool] = []
    for sample in stream:
        kind = KINDS[sample.index % len(KINDS)]
        item = sample.scene.items[int(sample.rng.integers(len(sample.scene.items)))]
        region = pointer(item, kind, sample.rng)
        with clock:
            text = model.describe(sample.scene.image, region).text
        said[kind].append(_plain(text) == _plain(shapes_world.indefinite(item.name)))
        names = _names(item, sample.rng)
        with clock:
            picked = model.classify_region(sample.scene.image, region, names).text
        chosen.append(picked == item.name)
    return {
        "description_right": _mean([right for rights in said.values() for right in rights]),
        "class_right": _mean(chosen),
        **{f"description_right_{kind}": _mean(rights) for kind, rights in said.items() if rights},
    }


def interactive_metrics(
    model: RegionModel, stream: Iterator[Sample], clock: Clock
) -> dict[str, float | int]:
    """Segment all items of each picture at once, each pointed at in another way.

    The mask of a region is compared with the item's visible pixels; the mean counts every region.
    """
    ious: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for sample in stream:
        items = sample.scene.items
        kinds = [KINDS[(sample.index + place) % len(KINDS)] for place in range(len(items))]
        regions = [pointer(item, kind, sample.rng) for item, kind in zip(items, kinds, strict=True)]
        with clock:
            found = model.segment(sample.scene.image, regions=regions).detections
        by_label = {detection.label: detection for detection in found}
        for place, (item, kind) in enumerate(zip(items, kinds, strict=True), start=1):
            mask = by_label[f"region{place}"].mask
            if mask is None:
                raise TypeError("interactive segmentation needs detections with masks")
            ious[kind].append(_iou(mask, item.mask))
    everything = [iou for values in ious.values() for iou in values]
    return {
        "mask_iou": _mean(everything),
        "mask_iou_above_0.5": _mean([iou >= _GOOD_IOU for iou in everything]),
        "regions": len(everything),
        **{f"mask_iou_{kind}": _mean(values) for kind, values in ious.items() if values},
    }


def pointer(item: Item, kind: str, rng: np.random.Generator) -> Region:
    """One way to point at an item; ``kind`` is one of :data:`KINDS`."""
    if kind == "mask":
        return Mask(item.mask)
    if kind == "box":
        x0, y0, x1, y1 = item.box_xyxy
        reach = _JITTER * np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
        corners = np.array(item.box_xyxy) - [0, 0, 1, 1] + rng.uniform(-1, 1, 4) * reach
        return Box(*(float(corner) for corner in corners))
    if kind == "polygon":
        return _outline(item.mask)
    spots = _inner_places(item.mask, rng, 1 if kind == "point" else 2)
    if kind == "point":
        return Point(*spots[0])
    return Scribble(tuple(spots))


def _inner_places(
    mask: NDArray[np.bool_], rng: np.random.Generator, count: int
) -> list[tuple[float, float]]:
    """Centres of pixels inside the mask, away from its edge where it is thick enough."""
    padded = np.pad(mask, 1)
    inner = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    rows, columns = np.nonzero(inner if inner.any() else mask)
    picked = rng.integers(len(rows), size=count)
    return [(float(columns[i]) + 0.5, float(rows[i]) + 0.5) for i in picked]


def _outline(mask: NDArray[np.bool_]) -> Region:
    """The farthest pixel in each of twelve directions from the middle, joined by straight lines."""
    rows, columns = np.nonzero(mask)
    y, x = rows.mean(), columns.mean()
    turns = np.arctan2(rows - y, columns - x) / (2 * np.pi) % 1.0
    sectors = (turns * _CORNERS).astype(np.int64) % _CORNERS
    corners = []
    for sector in range(_CORNERS):
        inside = np.flatnonzero(sectors == sector)
        if len(inside):
            far = inside[np.argmax(np.hypot(rows[inside] - y, columns[inside] - x))]
            corners.append((float(columns[far]) + 0.5, float(rows[far]) + 0.5))
    return Polygon(tuple(corners)) if len(corners) > 2 else Mask(mask)


def _names(item: Item, rng: np.random.Generator) -> list[str]:
    """The item's name among five others; four of these share its shape or its colour."""
    others = [f"{c} {s}" for c in shapes_world.COLORS for s in shapes_world.SHAPES]
    others.remove(item.name)
    near = [name for name in others if item.shape in name or item.color in name]
    far = [name for name in others if name not in near]
    wrong = [near[i] for i in rng.permutation(len(near))[: _CLASSES - 2]]
    names = [item.name, *wrong, far[int(rng.integers(len(far)))]]
    return [names[i] for i in rng.permutation(len(names))]


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    union = int((one | other).sum())
    return float((one & other).sum()) / union if union else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def _mean(values: Sequence[float] | Sequence[bool]) -> float:
    return float(sum(values)) / len(values) if values else 0.0
