"""Numbers for grounded captions: the truth gets full marks, and each planted fault shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from visionllm_edge.benchmarks.accuracy import evaluate
from visionllm_edge.benchmarks.workload import samples
from visionllm_edge.runtime.results import (
    Detection,
    GroundedCaptionResult,
    GroundedPhrase,
    SemanticResult,
)
from visionllm_edge.runtime.shapes_world import SHAPES, Item, indefinite

IMAGES, SEED = 20, 2
Change = Callable[[GroundedCaptionResult], GroundedCaptionResult]


class Oracle:
    """Says the items of a picture that it is told, and finds them; ``change`` plants a fault."""

    def __init__(
        self, change: Change = lambda result: result, *, keep: Callable[[Item], bool] | None = None
    ) -> None:
        self._scenes = {s.scene.image.tobytes(): s.scene for s in samples(SEED, IMAGES)}
        self._change, self._keep = change, keep

    def grounded_caption(self, image: NDArray[np.uint8]) -> GroundedCaptionResult:
        items = [i for i in self._scenes[image.tobytes()].items if not self._keep or self._keep(i)]
        return self._change(told(items))


def told(items: Sequence[Item]) -> GroundedCaptionResult:
    """The phrases in a row with commas between, one detection each."""
    text, phrases = "", []
    for index, item in enumerate(items):
        text += ", " if text else ""
        words = indefinite(item.name)
        phrases.append(GroundedPhrase(words, len(text), len(text) + len(words), index))
        text += words
    found = tuple(
        Detection(phrase.text, 0.9 - 0.1 * phrase.group, item.box_xyxy, group=phrase.group)
        for phrase, item in zip(phrases, items, strict=True)
    )
    return GroundedCaptionResult((128, 128), text + ".", tuple(phrases), found)


def numbers(oracle: Oracle) -> dict[str, float | int]:
    model: Any = oracle
    return evaluate(model, "grounded-caption", images=IMAGES, seed=SEED).metrics


def test_the_truth_gets_full_marks() -> None:
    metrics = numbers(Oracle())
    items = sum(len(s.scene.items) for s in samples(SEED, IMAGES))
    assert metrics.pop("items") == items > IMAGES
    assert set(metrics.values()) == {1.0}


def test_a_phrase_too_few_costs_recall() -> None:
    metrics = numbers(Oracle(keep=lambda item: item.shape != "person"))
    assert metrics["phrase_precision"] == 1.0 and metrics["phrase_recall"] < 1.0
    assert metrics["box_iou"] == pytest.approx(metrics["phrase_recall"])
    assert metrics["box_iou_said"] == 1.0
    recall = metrics["phrase_recall"]
    assert metrics["phrase_f1"] == pytest.approx(2 * recall / (1 + recall))


def test_a_wrong_colour_is_no_items_phrase() -> None:
    def recolored(result: GroundedCaptionResult) -> GroundedCaptionResult:
        phrases = tuple(replace(p, text="a pink " + p.text.split()[-1]) for p in result.phrases)
        return replace(result, phrases=phrases)

    metrics = numbers(Oracle(recolored))
    assert metrics["phrase_f1"] == metrics["box_iou"] == metrics["offsets_right"] == 0.0


def beside(found: Detection) -> Detection:
    x0, y0, x1, y1 = found.box_xyxy
    return replace(found, box_xyxy=(x0 + 4, y0 + 4, x1 + 4, y1 + 4))


def test_boxes_beside_their_items() -> None:
    def moved(result: GroundedCaptionResult) -> GroundedCaptionResult:
        return replace(result, detections=tuple(beside(d) for d in result.detections))

    metrics = numbers(Oracle(moved))
    assert 0.4 < metrics["box_iou"] < 0.9 and metrics["phrase_f1"] == 1.0


def test_phrases_linked_to_each_others_boxes() -> None:
    def crossed(result: GroundedCaptionResult) -> GroundedCaptionResult:
        last = len(result.phrases) - 1
        return replace(
            result, detections=tuple(replace(d, group=last - d.group) for d in result.detections)
        )

    metrics = numbers(Oracle(crossed))
    assert metrics["grounded"] < 0.6 and metrics["phrase_f1"] == 1.0


def test_a_phrase_with_many_boxes_is_its_best_scoring_one() -> None:
    def with_noise(score: float) -> Change:
        def change(result: GroundedCaptionResult) -> GroundedCaptionResult:
            noise = tuple(
                replace(d, score=score, box_xyxy=(0.0, 0.0, 9.0, 9.0)) for d in result.detections
            )
            return replace(result, detections=result.detections + noise)

        return change

    assert numbers(Oracle(with_noise(0.1)))["box_iou"] == 1.0
    assert numbers(Oracle(with_noise(0.95)))["box_iou"] < 0.3


def test_offsets_that_do_not_fit_the_text() -> None:
    def shifted(result: GroundedCaptionResult) -> GroundedCaptionResult:
        return replace(result, text="So: " + result.text)

    metrics = numbers(Oracle(shifted))
    assert metrics["offsets_right"] == 0.0 and metrics["phrase_f1"] == 1.0


def test_nothing_said() -> None:
    def silent(result: GroundedCaptionResult) -> GroundedCaptionResult:
        return GroundedCaptionResult((128, 128), "", (), ())

    metrics = numbers(Oracle(silent))
    assert metrics.pop("items") > 0
    assert set(metrics.values()) == {0.0}


class Painter:
    """Knows every pixel; ``shift_px`` moves the map, ``swap`` exchanges two shapes."""

    def __init__(self, *, shift_px: int = 0, swap: bool = False, blank: bool = False) -> None:
        self._scenes = {s.scene.image.tobytes(): s.scene for s in samples(SEED, IMAGES)}
        self._shift, self._swap, self._blank = shift_px, swap, blank

    def semantic(self, image: NDArray[np.uint8], classes: Sequence[str]) -> SemanticResult:
        labels = np.full(image.shape[:2], -1, np.int16)
        for item in self._scenes[image.tobytes()].items:
            index = classes.index(item.shape)
            labels[item.mask] = 1 - index if self._swap and index < 2 else index
        labels = np.roll(labels, self._shift, axis=1)
        return SemanticResult((128, 128), tuple(classes), labels * 0 - 1 if self._blank else labels)


def painted(painter: Painter) -> dict[str, float | int]:
    model: Any = painter
    return evaluate(model, "semantic", images=IMAGES, seed=SEED).metrics


def test_every_pixel_right() -> None:
    assert set(painted(Painter()).values()) == {1.0}


def test_pixels_beside_their_items() -> None:
    near, far = painted(Painter(shift_px=1)), painted(Painter(shift_px=6))
    assert 1.0 > near["mean_iou"] > far["mean_iou"] > 0.2
    assert near["background_iou"] > near["mean_iou"]


def test_exchanged_shapes_have_no_iou() -> None:
    swapped = painted(Painter(swap=True))
    assert swapped["mean_iou"] == pytest.approx((len(SHAPES) - 2) / len(SHAPES))
    assert swapped["background_iou"] == 1.0 > swapped["pixels_right"] > 0.8


def test_no_pixel_of_any_class() -> None:
    blank = painted(Painter(blank=True))
    assert blank["mean_iou"] == 0.0 and 0.5 < blank["background_iou"] < 1.0
