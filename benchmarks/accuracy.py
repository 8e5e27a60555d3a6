"""Evaluate a model on freshly made shapes-world scenes.

Whatever has the methods of :class:`Model` can be judged: a loaded bundle, or the torch model behind
an adapter. Both then see the same pictures, prompts and questions for the same seed, so that
their numbers can be compared.

The tasks of words and boxes stand here; each other one is a function in a file of its own and an
entry of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.benchmarks.clock import Clock
from visionllm_edge.benchmarks.detection_metrics import (
    Judged,
    average_precision,
    mask_iou,
    require_pycocotools,
)
from visionllm_edge.benchmarks.grounding_metrics import grounded_caption_metrics, semantic_metrics
from visionllm_edge.benchmarks.image_metrics import editing_metrics, generation_metrics
from visionllm_edge.benchmarks.pose_metrics import pose_metrics
from visionllm_edge.benchmarks.region_metrics import interactive_metrics, region_metrics
from visionllm_edge.benchmarks.text_metrics import answer_accuracy, caption_scores
from visionllm_edge.benchmarks.workload import Sample, samples
from visionllm_edge.runtime import shapes_world
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.results import DetectionResult, TextResult
from visionllm_edge.runtime.shapes_world import Question

__all__ = ["TASKS", "Evaluation", "Model", "Prompts", "Task", "evaluate"]

Task = str
Metrics = dict[str, float | int]
Prompts = Literal["shape", "phrase"]
Progress = Callable[[int, int], None]

_TOP_K = 100
_PHRASES_PER_IMAGE = 6
# What is asked about scenes: model, scenes, clock in, numbers out.
_ABOUT_SCENES: Mapping[Task, Callable[[Any, Iterator[Sample], Clock], Metrics]] = {
    "region": region_metrics,
    "interactive": interactive_metrics,
    "pose": pose_metrics,
    "grounded-caption": grounded_caption_metrics,
    "semantic": semantic_metrics,
}
# What makes pictures of its own: model, how many, seed, clock, progress in.
_MAKING: Mapping[Task, Callable[..., Metrics]] = {
    "generate": generation_metrics,
    "edit": editing_metrics,
}
TASKS: tuple[Task, ...] = ("detect", "segment", "caption", "vqa", *_ABOUT_SCENES, *_MAKING)


class Model(Protocol):
    """What an evaluation asks of a model."""

    def detect(
        self, image: NDArray[np.uint8], classes: Sequence[str], *, threshold: float, top_k: int
    ) -> DetectionResult:
        """Find boxes of the named classes."""
        ...

    def segment(
        self, image: NDArray[np.uint8], classes: Sequence[str], *, threshold: float, top_k: int
    ) -> DetectionResult:
        """Find boxes and masks of the named classes."""
        ...

    def caption(self, image: NDArray[np.uint8]) -> TextResult:
        """Describe the picture in one sentence."""
        ...

    def vqa(self, image: NDArray[np.uint8], question: str) -> TextResult:
        """Answer a question in a word."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        task: What was asked of the model.
        images: How many scenes.
        seed: Which scenes.
        prompts: How classes were named, for detect and segment.
        metrics: Name to value; parts and precisions are 0 to 1, counts are whole numbers.
        model_s: Seconds spent inside the model.
    """

    task: Task
    images: int
    seed: int
    prompts: Prompts | None
    metrics: dict[str, float | int]
    model_s: float

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return {
            "task": self.task,
            "images": self.images,
            "seed": self.seed,
            "prompts": self.prompts,
            "metrics": dict(self.metrics),
            "model_s": self.model_s,
        }


def evaluate(
    model: Model,
    task: Task,
    *,
    images: int,
    seed: int,
    prompts: Prompts = "shape",
    questions_per_image: int = 3,
    size_px: int = 128,
    progress: Progress | None = None,
) -> Evaluation:
    """Run a task over fresh scenes and compare the answers with the truth.

    Args:
        model: The model to judge.
        task: One of ``TASKS``. ``detect`` gives box AP; ``segment`` box and mask AP and mask IoU;
            ``caption`` exact match and object-set Jaccard; ``vqa`` the accuracy per kind of
            question; the others what their function in the tables says.
        images: How many scenes, at least 1.
        seed: Which scenes; not negative.
        prompts: ``shape`` asks for all six shapes in each picture, ``phrase`` for six 'colour
            shape' names, of which some are in the picture and most others are near misses.
        questions_per_image: For ``vqa``.
        size_px: Width and height of the pictures.
        progress: Called with (done, total) after each picture.

    Raises:
        EdgeError: pycocotools is missing, where it is needed.
        InputError: An unknown task, or a number is out of range.
    """
    if task not in TASKS:
        raise InputError(f"evaluation: expected one of {', '.join(TASKS)}, got {task!r}.")
    if images < 1 or seed < 0 or questions_per_image < 1:
        raise InputError(
            "evaluation: expected at least 1 image and 1 question and a seed of at least 0, got "
            f"images {images}, questions {questions_per_image}, seed {seed}."
        )
    clock = Clock()
    if task in _MAKING:
        made = _MAKING[task](model, images=images, seed=seed, clock=clock, progress=progress)
        return Evaluation(task, images, seed, None, made, clock.total_s)
    stream = _reported(samples(seed, images, size_px=size_px), images, progress)
    metrics: Metrics
    if task in _ABOUT_SCENES:
        metrics = _ABOUT_SCENES[task](model, stream, clock)
    elif task in ("detect", "segment"):
        require_pycocotools()
        judged = [_judge(model, task, sample, prompts, clock) for sample in stream]
        metrics = _detection_metrics(task, judged)
    elif task == "caption":
        metrics = _caption_metrics(model, stream, clock)
    else:
        metrics = _vqa_metrics(model, stream, questions_per_image, clock)
    named = prompts if task in ("detect", "segment") else None
    return Evaluation(task, images, seed, named, metrics, clock.total_s)


def _reported(stream: Iterator[Sample], total: int, progress: Progress | None) -> Iterator[Sample]:
    for done, sample in enumerate(stream, start=1):
        yield sample
        if progress is not None:
            progress(done, total)


def _judge(model: Model, task: Task, sample: Sample, prompts: Prompts, clock: Clock) -> Judged:
    scene = sample.scene
    if prompts == "shape":
        names = list(shapes_world.SHAPES)
    else:
        names = shapes_world.class_names(scene, sample.rng, _PHRASES_PER_IMAGE, kind="phrase")
    find = model.segment if task == "segment" else model.detect
    with clock:
        # Average precision ranks everything, so nothing may be cut off by score.
        found = find(scene.image, names, threshold=0.0, top_k=_TOP_K)
    return Judged(scene.items, tuple(names), found)


def _detection_metrics(task: Task, judged: Sequence[Judged]) -> Metrics:
    box = average_precision(judged)
    metrics: Metrics = {"box_ap": box.ap, "box_ap50": box.ap50, "box_ap75": box.ap75}
    if task == "segment":
        mask = average_precision(judged, kind="segm")
        iou = mask_iou(judged)
        metrics |= {
            "mask_ap": mask.ap,
            "mask_ap50": mask.ap50,
            "mask_iou_matched": iou.matched,
            "mask_iou_misses_as_zero": iou.with_misses_as_zero,
            "recall_at_score_0.3": iou.recall,
            "items": iou.items,
        }
    return metrics


def _caption_metrics(model: Model, stream: Iterator[Sample], clock: Clock) -> Metrics:
    pairs: list[tuple[str, str]] = []
    for sample in stream:
        with clock:
            said = model.caption(sample.scene.image).text
        pairs.append((said, shapes_world.caption(sample.scene)))
    scores = caption_scores(pairs)
    return {"exact_match": scores.exact_match, "object_jaccard": scores.object_jaccard}


def _vqa_metrics(
    model: Model, stream: Iterator[Sample], questions_per_image: int, clock: Clock
) -> Metrics:
    pairs: list[tuple[str, Question]] = []
    for sample in stream:
        for question in shapes_world.questions(sample.scene, sample.rng, questions_per_image):
            with clock:
                said = model.vqa(sample.scene.image, question.text).text
            pairs.append((said, question))
    accuracy = answer_accuracy(pairs)
    metrics: Metrics = {"accuracy": accuracy.overall}
    for kind, value in accuracy.by_kind.items():
        metrics[f"accuracy_{kind}"] = value
    for kind, number in accuracy.asked.items():
        metrics[f"asked_{kind}"] = number
    return metrics
