"""Numbers for visual prompts: the truth gets full marks, planted faults show, pointers point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from visionllm_edge.benchmarks import cli
from visionllm_edge.benchmarks.accuracy import TASKS, evaluate
from visionllm_edge.benchmarks.region_metrics import KINDS, pointer
from visionllm_edge.benchmarks.workload import samples
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.regions import Region, picture_mask
from visionllm_edge.runtime.results import Detection, DetectionResult, TextResult
from visionllm_edge.runtime.shapes_world import Item, indefinite

IMAGES = 15
SEED = 4
SIZE = (128, 128)


class Oracle:
    """Finds the item whose box fits a region best, and answers with its truth."""

    def __init__(self, *, blind_to_color: bool = False, shift_px: int = 0) -> None:
        self._scenes = {s.scene.image.tobytes(): s.scene for s in samples(SEED, IMAGES)}
        self._blind = blind_to_color
        self._shift = shift_px
        self.classes: list[list[str]] = []

    def _meant(self, image: NDArray[np.uint8], region: Region) -> Item:
        mask = picture_mask(region, SIZE, 112)
        rows, columns = np.nonzero(mask)
        middle = np.array([columns.mean(), rows.mean()])

        def fit(item: Item) -> tuple[float, float]:
            x0, y0, x1, y1 = item.box_xyxy
            away = float(np.abs(middle - [(x0 + x1) / 2, (y0 + y1) / 2]).sum())
            return float((mask & item.mask).sum() / mask.sum()), -away

        return max(self._scenes[image.tobytes()].items, key=fit)

    def describe(self, image: NDArray[np.uint8], region: Region) -> TextResult:
        item = self._meant(image, region)
        name = f"red {item.shape}" if self._blind else item.name
        return TextResult(indefinite(name).capitalize() + ".")

    def classify_region(
        self, image: NDArray[np.uint8], region: Region, classes: Sequence[str]
    ) -> TextResult:
        self.classes.append(list(classes))
        item = self._meant(image, region)
        pool = [name for name in classes if item.shape in name] if self._blind else [item.name]
        return TextResult(pool[0])

    def segment(self, image: NDArray[np.uint8], *, regions: Sequence[Region]) -> DetectionResult:
        found = []
        for number, region in enumerate(regions, start=1):
            item = self._meant(image, region)
            mask = np.roll(item.mask, self._shift, axis=1)
            found.append(Detection(f"region{number}", 0.9, item.box_xyxy, mask, number - 1))
        return DetectionResult(SIZE, tuple(found), "", ())


def measured(task: str, **faults: Any) -> dict[str, float | int]:
    return evaluate(Oracle(**faults), task, images=IMAGES, seed=SEED).metrics  # type: ignore[arg-type]


def test_the_truth_gets_full_marks() -> None:
    metrics = measured("region")
    assert metrics["description_right"] == metrics["class_right"] == 1.0
    assert {f"description_right_{kind}" for kind in KINDS} <= set(metrics)
    found = measured("interactive")
    assert found["mask_iou"] == found["mask_iou_above_0.5"] == 1.0
    assert found["regions"] == sum(len(s.scene.items) for s in samples(SEED, IMAGES))


def test_a_wrong_colour_is_a_wrong_description() -> None:
    metrics = measured("region", blind_to_color=True)
    assert metrics["description_right"] < 0.6
    assert metrics["class_right"] < 1.0


def test_shifted_masks_cost_iou() -> None:
    little, much = (measured("interactive", shift_px=px) for px in (2, 40))
    assert 0.6 < little["mask_iou"] < 1.0 and little["mask_iou_above_0.5"] > 0.8
    assert much["mask_iou"] < 0.1 and much["mask_iou_above_0.5"] < 0.1


def test_classes_hold_the_truth_and_near_misses() -> None:
    oracle = Oracle()
    evaluate(oracle, "region", images=IMAGES, seed=SEED)  # type: ignore[arg-type]
    assert len(oracle.classes) == IMAGES
    for names in oracle.classes:
        assert len(set(names)) == 6
    first = [names[0] for names in oracle.classes]
    assert len(set(first)) > IMAGES // 3, "in any order"


@pytest.mark.parametrize("kind", KINDS)
def test_pointers_point_at_their_item(kind: str) -> None:
    rng = np.random.default_rng(0)
    for sample in samples(SEED, IMAGES):
        for item in sample.scene.items:
            mask = picture_mask(pointer(item, kind, rng), SIZE, 112)
            inside = (mask & item.mask).sum() / mask.sum()
            if kind == "mask":
                np.testing.assert_array_equal(mask, item.mask)
            elif kind == "point":
                # The middle of a click is on the item; its rim may reach over a thin one.
                assert inside > 0.3
            elif kind == "box":
                assert (mask & item.mask).sum() > 0.85 * item.mask.sum()
            elif kind == "polygon":
                assert inside > 0.4 and (mask & item.mask).sum() > 0.6 * item.mask.sum()
            else:
                assert inside > 0.15


def test_the_command_knows_every_task() -> None:
    assert cli._TASKS == TASKS


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(InputError, match="'regions'"):
        evaluate(Oracle(), "regions", images=1, seed=0)  # type: ignore[arg-type]
