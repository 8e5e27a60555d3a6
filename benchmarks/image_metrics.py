"""Numbers for pictures that a model makes: the model's own detector looks for what was asked for.

Captions and edits come from fresh sketches of the shapes world. Half of the captions name one
figure; the others, and all pictures to be edited, show pairs of figures that no training has seen
together. The detector is asked for the right names and for near misses (another colour, another
shape) at once; where several names claim one place, the best score has it. How often it is right on
pictures that were drawn and not made is reported beside, because no better can be expected.

Whatever has the three methods of :class:`ImageModel` can be judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visionllm_edge.benchmarks.clock import Clock
from visionllm_edge.runtime.results import Detection, DetectionResult, ImageResult
from visionllm_edge.runtime.shapes_world import COLORS, SHAPES
from visionllm_edge.runtime.shapes_world.edits import (
    EDIT_KINDS,
    Edit,
    Sketch,
    draw_sketch,
    make_edit,
    make_sketch,
)

__all__ = ["ImageModel", "editing_metrics", "generation_metrics", "names_seen"]

Rgb = NDArray[np.uint8]
Progress = Callable[[int, int], None]

# "make" in ASCII, so that no training draws from the same stream.
_STREAM = 0x6D616B65
_THRESHOLD = 0.3
_SAME_PLACE_IOU = 0.5
_NAMES = 8
_TOP_K = 100


class ImageModel(Protocol):
    """What is asked of a model."""

    def generate(self, prompt: str, *, seed: int) -> ImageResult:
        """Make a picture of a caption."""
        ...

    def edit(self, image: Rgb, instruction: str, *, seed: int) -> ImageResult:
        """Change a picture."""
        ...

    def detect(
        self, image: Rgb, classes: Sequence[str], *, threshold: float, top_k: int
    ) -> DetectionResult:
        """Find boxes of the named classes."""
        ...


def generation_metrics(
    model: ImageModel, *, images: int, seed: int, clock: Clock, progress: Progress | None = None
) -> dict[str, float | int]:
    """Make pictures of captions and look for what they name.

    1. ``found``: part of all named figures that were found with their shape and colour;
    2. ``found_one``, ``found_two``: the same, for captions with one and with two figures;
    3. ``complete``: part of pictures with every named figure and no other of the names asked for;
    4. ``found_in_drawn``: what the judge finds in drawn pictures of the same captions.

    Args:
        model: the model to judge.
        images: how many captions.
        seed: which captions.
        clock: counts the time spent making pictures.
        progress: called with (done, total) after each picture.
    """
    hits: dict[int, list[bool]] = {1: [], 2: []}
    complete, drawn = [], []
    for index in range(images):
        rng = np.random.default_rng([_STREAM, seed, index])
        alone = index % 2 == 0
        sketch = make_sketch(rng, min_figures=1 if alone else 2, max_figures=1 if alone else 2,
                             kept=not alone)  # fmt: skip
        asked = _with_near_misses(sketch.names, rng)
        with clock:
            made = model.generate(sketch.caption, seed=index)
        seen = names_seen(model, made.image, asked)
        hits[len(sketch.names)] += [name in seen for name in sketch.names]
        complete.append(seen == set(sketch.names))
        truth = names_seen(model, draw_sketch(sketch).image, asked)
        drawn += [name in truth for name in sketch.names]
        if progress is not None:
            progress(index + 1, images)
    metrics: dict[str, float | int] = {"found": _part(hits[1] + hits[2])}
    for count, word in ((1, "one"), (2, "two")):
        if hits[count]:
            metrics[f"found_{word}"] = _part(hits[count])
    metrics |= {
        "complete": _part(complete),
        "found_in_drawn": _part(drawn),
        "figures": len(hits[1]) + len(hits[2]),
    }
    return metrics


def editing_metrics(
    model: ImageModel, *, images: int, seed: int, clock: Clock, progress: Progress | None = None
) -> dict[str, float | int]:
    """Edit pictures and look for what was to change and what was to stay.

    1. ``changed``: part of edits after which the old figure is not found, and the new one is where
       there is one; per kind as ``changed_recolor`` and so on;
    2. ``kept``: part of the other figures that are still found;
    3. ``right``: part of edits with both, and ``right_in_drawn``: the same for the exactly edited
       pictures, which is the best that this judge can say;
    4. ``psnr_db``: mean closeness to the exactly edited pictures, where ``psnr_unedited_db`` is
       that of the pictures before the edit.

    Args:
        model: the model to judge.
        images: how many edits.
        seed: which edits.
        clock: counts the time spent making pictures.
        progress: called with (done, total) after each picture.
    """
    changed: dict[str, list[bool]] = {kind: [] for kind in EDIT_KINDS}
    kept, right, drawn, near, unedited = [], [], [], [], []
    for index in range(images):
        rng = np.random.default_rng([_STREAM, seed, index, 1])
        edit = make_edit(rng, kind=EDIT_KINDS[index % len(EDIT_KINDS)], kept=True)
        before, after = draw_sketch(edit.before).image, draw_sketch(edit.after).image
        names = tuple(dict.fromkeys((*edit.before.names, *edit.after.names)))
        asked = _with_near_misses(names, rng)
        with clock:
            made = model.edit(before, edit.instruction, seed=index).image
        done, stayed = _judge_edit(edit, names_seen(model, made, asked))
        changed[edit.kind].append(done)
        kept += stayed
        right.append(done and all(stayed))
        done, stayed = _judge_edit(edit, names_seen(model, after, asked))
        drawn.append(done and all(stayed))
        near.append(_psnr_db(made, after))
        unedited.append(_psnr_db(before, after))
        if progress is not None:
            progress(index + 1, images)
    metrics: dict[str, float | int] = {
        "right": _part(right),
        "changed": _part([one for ones in changed.values() for one in ones]),
        "kept": _part(kept),
        "right_in_drawn": _part(drawn),
        "psnr_db": float(np.mean(near)),
        "psnr_unedited_db": float(np.mean(unedited)),
    }
    metrics |= {f"changed_{kind}": _part(ones) for kind, ones in changed.items() if ones}
    return metrics


def names_seen(model: ImageModel, image: Rgb, names: Sequence[str]) -> set[str]:
    """The names that the detector gives to places of a picture, the best one for each place."""
    found = model.detect(image, names, threshold=_THRESHOLD, top_k=_TOP_K).detections
    taken: list[Detection] = []
    for one in sorted(found, key=lambda detection: -detection.score):
        if all(_iou(one.box_xyxy, other.box_xyxy) < _SAME_PLACE_IOU for other in taken):
            taken.append(one)
    return {one.label for one in taken}


def _judge_edit(edit: Edit, seen: set[str]) -> tuple[bool, list[bool]]:
    """Whether the change was made, and for each other figure whether it is still there."""
    old = edit.before.names[edit.index]
    new = _new_name(edit.after, edit.before)
    done = old not in seen and (new is None or new in seen)
    others = [name for i, name in enumerate(edit.before.names) if i != edit.index]
    return done, [name in seen for name in others]


def _new_name(after: Sketch, before: Sketch) -> str | None:
    return next((name for name in after.names if name not in before.names), None)


def _with_near_misses(names: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The names and others that share a word with them, in random order."""
    near = sorted(
        {f"{color} {name.split()[1]}" for name in names for color in COLORS}
        | {f"{name.split()[0]} {shape}" for name in names for shape in SHAPES}
    )
    others = [name for name in near if name not in names]
    chosen = [*names, *rng.permutation(others)[: _NAMES - len(names)].tolist()]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _iou(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def _psnr_db(image: Rgb, truth: Rgb) -> float:
    """Peak signal-to-noise ratio at the size of the truth; 99 for equal pictures."""
    if image.shape != truth.shape:
        image = np.asarray(Image.fromarray(image).resize(truth.shape[1::-1]))
    error = float(np.mean((image.astype(np.float64) - truth) ** 2))
    return 99.0 if error == 0.0 else min(99.0, 10.0 * float(np.log10(255.0**2 / error)))


def _part(ones: Sequence[bool]) -> float:
    return sum(ones) / len(ones) if ones else 0.0
