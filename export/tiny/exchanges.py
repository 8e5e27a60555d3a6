"""What is said about a scene, task by task: question, right answer, and what its links stand for.

Wordings come from the runtime, so that the model learns what it will be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from visionllm_edge.export.tiny.speaker import Link, Pointed, Said
from visionllm_edge.runtime import prompts, task_prompts
from visionllm_edge.runtime import shapes_world as world
from visionllm_edge.runtime.keypoints import PRESETS
from visionllm_edge.runtime.prompts import Segment, Text
from visionllm_edge.runtime.shapes_world.pointing import POINTERS, Pointer, point_at
from visionllm_edge.runtime.task_prompts import Phrase

__all__ = [
    "MARKS",
    "caption",
    "classify",
    "describe",
    "detect",
    "edit",
    "generate",
    "ground",
    "grounded_caption",
    "interactive",
    "meaning",
    "pose",
    "question",
]

KEYPOINTS = PRESETS["coco17"].keypoints
MARKS = {"pose": len(KEYPOINTS), "gen": 36, "edit": 48}
"""How many things a throw-away head reads from the rows behind a routing token."""

_POINTER_SHARES = (0.4, 0.2, 0.1, 0.1, 0.2)
_NEW_NAMES = 2
Mode = Literal["[DET]", "[SEG]"]


def meaning(name: str) -> tuple[int, int]:
    """Shape as a number, and colour (0 is none, then 1..6)."""
    *color, shape = name.split()
    return world.SHAPES.index(shape), 1 + world.COLORS.index(color[0]) if color else 0


def detect(names: Sequence[str], mode: Mode, rng: np.random.Generator) -> Said:
    """Find or segment classes."""
    wordings = prompts.DETECTION_QUESTIONS if mode == "[DET]" else prompts.SEGMENTATION_QUESTIONS
    asked = _some(rng, wordings).format(classes=", ".join(names))
    links = tuple(Link(meaning(name)) for name in names)
    return Said(asked, prompts.scripted_answer(names, mode), "detect", links)


def ground(expression: str, rng: np.random.Generator) -> Said:
    """Find what an expression refers to."""
    asked = _some(rng, prompts.GROUNDING_QUESTIONS).format(expression=expression)
    return Said(asked, prompts.scripted_grounding(), "detect", (Link(meaning(expression)),))


def caption(scene: world.Scene, rng: np.random.Generator) -> Said:
    """Describe the picture."""
    answer = (Text(world.caption(scene)),)
    return Said(_some(rng, prompts.CAPTION_QUESTIONS), answer, "caption")


def question(asked: world.Question) -> Said:
    """A question with a short answer."""
    return Said(f"{asked.text} {prompts.SHORT_ANSWER}", (Text(asked.answer),), "vqa")


def describe(scene: world.Scene, index: int, rng: np.random.Generator) -> Said:
    """Describe what a region shows."""
    item = scene.items[index]
    wording = _some(rng, task_prompts.DESCRIBE_QUESTIONS)
    asked = _numbered(task_prompts.describe_question(wording), rng)
    answer = (Text(world.indefinite(item.name)),)
    return Said(asked, answer, "region", regions=(_point(scene, index, rng),))


def classify(scene: world.Scene, index: int, rng: np.random.Generator) -> Said:
    """Name the class of a region, out of a few."""
    item = scene.items[index]
    right, others = item.shape, list(world.SHAPES)
    if rng.random() < 0.5:
        right = item.name
        others = [f"{color} {shape}" for color in world.COLORS for shape in world.SHAPES]
    wrong = [name for name in others if name != right]
    count = int(rng.integers(1, 6))
    names = [right, *(wrong[i] for i in rng.permutation(len(wrong))[:count])]
    names = [names[i] for i in rng.permutation(len(names))]
    wording = _some(rng, task_prompts.CLASSIFY_QUESTIONS)
    asked = _numbered(task_prompts.classify_question(names, wording), rng)
    return Said(asked, (Text(right),), "region", regions=(_point(scene, index, rng),))


def interactive(scene: world.Scene, items: Sequence[int], rng: np.random.Generator) -> Said:
    """Segment what regions point at, one of the scene's items each."""
    wording = _some(rng, task_prompts.INTERACTIVE_QUESTIONS)
    return Said(
        task_prompts.interactive_question(len(items), wording),
        task_prompts.interactive_answer(len(items)),
        "route",
        tuple(replace(_link(scene, i), pointed=True) for i in items),
        tuple(_point(scene, i, rng) for i in items),
    )


def grounded_caption(scene: world.Scene, rng: np.random.Generator) -> Said:
    """Describe the picture, every phrase with its object."""
    pieces: list[str | Phrase] = []
    last = len(scene.items) - 1
    for i, item in enumerate(scene.items):
        if i:
            pieces.append(" and " if i == last else ", ")
        pieces.append(Phrase(world.indefinite(item.name)))
    answer = task_prompts.grounded_caption_answer([*pieces, "."])
    asked = _some(rng, task_prompts.GROUNDED_CAPTION_QUESTIONS)
    links = tuple(_link(scene, i) for i in range(len(scene.items)))
    return Said(asked, answer, "grounded", links)


def pose(rng: np.random.Generator) -> Said:
    """Find persons, mostly, and some or all of their keypoints."""
    objects = ["person"]
    if rng.random() < 0.2:
        objects.insert(int(rng.integers(2)), str(rng.choice(world.SHAPES[:-1])))
    count = len(KEYPOINTS) if rng.random() < 0.35 else int(rng.integers(1, 7))
    order = rng.permutation(len(KEYPOINTS))[:count]
    if count == len(KEYPOINTS) or rng.random() < 0.6:
        order.sort()
    names = [KEYPOINTS[i] for i in order]
    links = [Link(meaning(name)) for name in objects]
    links += [Link(marks=_marks(len(KEYPOINTS), int(i))) for i in order]
    asked = task_prompts.pose_question(objects, names, _some(rng, task_prompts.POSE_QUESTIONS))
    return Said(asked, task_prompts.pose_answer(objects, names), "route", tuple(links))


def generate(rng: np.random.Generator, *, alone: bool) -> Said:
    """Ask for a picture; what it shows has nothing to do with the one at hand."""
    names = [_name(rng) for _ in range(int(rng.integers(1, _NEW_NAMES + 1)))]
    text = " and ".join(world.indefinite(name) for name in names)
    marks = _marks(MARKS["gen"], *(_number(name) for name in names))
    return Said(
        task_prompts.generation_question(text, _some(rng, task_prompts.GENERATION_QUESTIONS)),
        task_prompts.generation_answer(),
        "route",
        (Link(marks=marks),),
        alone=alone,
    )


def edit(scene: world.Scene, rng: np.random.Generator) -> Said:
    """Ask for a change of one item, in the words of `shapes_world.edits`."""
    item = scene.items[rng.integers(len(scene.items))]
    named = _number(item.name)
    kind = int(rng.integers(3))
    if kind == 0:
        color = int(rng.integers(len(world.COLORS)))
        text = f"make the {item.name} {world.COLORS[color]}"
        marks = _marks(MARKS["edit"], named, 36 + color)
    elif kind == 1:
        shape = int(rng.integers(len(world.SHAPES)))
        text = f"replace the {item.name} with {world.indefinite(world.SHAPES[shape])}"
        marks = _marks(MARKS["edit"], named, 42 + shape)
    else:
        text = f"remove the {item.name}"
        marks = _marks(MARKS["edit"], named)
    asked = task_prompts.edit_question(text, _some(rng, task_prompts.EDIT_QUESTIONS))
    return Said(asked, task_prompts.edit_answer(), "route", (Link(marks=marks),))


def _link(scene: world.Scene, index: int) -> Link:
    item = scene.items[index]
    height, width = item.mask.shape
    x0, y0, x1, y1 = item.box_xyxy
    centre = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height)
    return Link(meaning(item.name), (*centre, (x1 - x0) / width, (y1 - y0) / height))


def _point(scene: world.Scene, index: int, rng: np.random.Generator) -> Pointed:
    pointer: Pointer = POINTERS[int(rng.choice(len(POINTERS), p=_POINTER_SHARES))]
    return Pointed(point_at(scene.items[index], rng, pointer), _link(scene, index))


def _numbered(asked: tuple[Segment, ...], rng: np.random.Generator) -> tuple[Segment, ...]:
    """Sometimes the region has a number, as in a conversation about several."""
    if rng.random() < 0.7:
        return asked
    name = task_prompts.region_name(int(rng.integers(1, 4)))
    plain = Text(task_prompts.region_name(None))
    return tuple(Text(name) if segment == plain else segment for segment in asked)


def _name(rng: np.random.Generator) -> str:
    return f"{rng.choice(world.COLORS)} {rng.choice(world.SHAPES)}"


def _number(name: str) -> int:
    shape, color = meaning(name)
    return (color - 1) * len(world.SHAPES) + shape


def _marks(size: int, *places: int) -> tuple[float, ...]:
    return tuple(float(i in places) for i in range(size))


def _some(rng: np.random.Generator, texts: Sequence[str]) -> str:
    """The first wording half of the time: it is the one the runtime uses."""
    return texts[0] if rng.random() < 0.5 else texts[int(rng.integers(len(texts)))]
