"""Training batches of the keypoint decoder: pictures with people, and what is asked about them.

All pictures of a batch have one size and get one question, so a batch needs no padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.preprocessing import PREPROCESS
from visionllm_edge.runtime import prompts
from visionllm_edge.runtime import shapes_world as world
from visionllm_edge.runtime.keypoints import PRESETS
from visionllm_edge.runtime.preprocess import clip_tiles, detector_input
from visionllm_edge.runtime.task_prompts import POSE_QUESTIONS, pose_answer, pose_question
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = [
    "NAMES",
    "PoseBatch",
    "PoseTruth",
    "Spoken",
    "pose_batches",
    "pose_questions",
    "say",
    "truth_of",
]

NAMES = PRESETS["coco17"].keypoints
"""COCO's keypoints, in the order of an item's ``keypoints``."""

# (height, width) in pixels; most batches are square.
_SIZES = ((128, 128),) * 6 + ((128, 160), (160, 128), (128, 192), (192, 128))
# Only people have keypoints: most pictures are full of them, the others are like any scene.
_CROWD = (*world.SHAPES, *("person",) * 24)
_CROWD_SHARE = 0.65
_SAME_QUESTION = 4
"""Batches in a row with one question: what the language model says of it is computed once."""


@dataclass(frozen=True)
class PoseTruth:
    """What one picture holds for the classes asked.

    Attributes:
        boxes: [G,4] cxcywh in 0..1.
        classes: [G,No] 0 or 1.
        keypoints: [G,K,3] x and y in 0..1, and COCO's v; all 0 for what has no keypoints.
        everyone: [P,17,2] x and y of all keypoints of all people, asked for or not.
        everywhere: [P,4] boxes x0y0x1y1 of these, in 0..1.
    """

    boxes: Tensor
    classes: Tensor
    keypoints: Tensor
    everyone: Tensor
    everywhere: Tensor


@dataclass(frozen=True)
class Spoken:
    """A whole turn as ids, marker ids after each routing token.

    Attributes:
        ids: [L] int64.
        objects: [No,N] positions of the rows of each object class.
        keypoints: [K,N] the same of each keypoint name.
        image_start: where the image tokens begin.
    """

    ids: Tensor
    objects: Tensor
    keypoints: Tensor
    image_start: int


@dataclass(frozen=True)
class PoseBatch:
    """One step's worth.

    Attributes:
        pixels: [B,3,H,W] of the keypoint decoder.
        tiles: [m,3,I,I] of the vision encoder, for the first pictures alone.
        spoken: what is asked of all of them.
        chosen: [K] int64, which of `NAMES` each keypoint is.
        truth: per picture.
        size: (height, width) in pixels.
    """

    pixels: Tensor
    tiles: Tensor
    spoken: Spoken
    chosen: Tensor
    truth: tuple[PoseTruth, ...]
    size: tuple[int, int]


def say(
    tokenizer: Tokenizer,
    config: VisionLLMConfig,
    objects: Sequence[str],
    keypoints: Sequence[str],
    *,
    wording: str = POSE_QUESTIONS[0],
    detection: str = prompts.DETECTION_QUESTIONS[0],
) -> Spoken:
    """The turn that asks for keypoints, with its scripted answer."""
    turn = prompts.Turn(
        pose_question(objects, keypoints, wording, detection), pose_answer(objects, keypoints)
    )
    segments = prompts.conversation([turn], image=True, template=config.deployment.template)
    plain = tokenizer.encode(segments, image_tokens=config.vision.tokens_per_tile)
    rows = config.num_embs
    markers = ["[EMB]", *(f"[EMB{i}]" for i in range(2, rows + 1))]
    marker_ids = [tokenizer.control_id(name) for name in markers]
    groups: dict[int, list[list[int]]] = {
        tokenizer.control_id("[DET]"): [],
        tokenizer.control_id("[POSE]"): [],
    }
    ids: list[int] = []
    for token in plain:
        ids.append(token)
        if token in groups:
            groups[token].append(list(range(len(ids), len(ids) + rows)))
            ids += marker_ids
    found = list(groups.values())
    assert [len(group) for group in found] == [len(objects), len(keypoints)], "a group per name"
    return Spoken(
        ids=torch.tensor(ids),
        objects=torch.tensor(found[0]),
        keypoints=torch.tensor(found[1]),
        image_start=ids.index(tokenizer.control_id("<im_patch>")),
    )


def truth_of(scene: world.Scene, objects: Sequence[str], chosen: Sequence[int]) -> PoseTruth:
    """Boxes, classes and keypoints of the items that are asked for."""
    height, width = scene.image.shape[:2]
    boxes, classes, keypoints = [], [], []
    for item in scene.items:
        hits = [float(world.matches(name, item)) for name in objects]
        if any(hits):
            x0, y0, x1, y1 = item.box_xyxy
            centre = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height]
            boxes.append([*centre, (x1 - x0) / width, (y1 - y0) / height])
            classes.append(hits)
            points = np.zeros((len(chosen), 3), np.float32)
            if item.keypoints is not None:
                shares = np.array([1 / width, 1 / height, 1], np.float32)
                points = (item.keypoints[list(chosen)] * shares).astype(np.float32)
            keypoints.append(points)
    count = len(boxes)
    people = [item for item in scene.items if item.keypoints is not None]
    side = np.array([width, height], np.float32)
    return PoseTruth(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(count, 4),
        classes=torch.tensor(classes, dtype=torch.float32).reshape(count, len(objects)),
        keypoints=torch.from_numpy(
            np.asarray(keypoints, np.float32).reshape(count, len(chosen), 3)
        ),
        everyone=torch.tensor(
            np.asarray([p.keypoints[:, :2] / side for p in people if p.keypoints is not None])
        ).reshape(len(people), len(NAMES), 2),
        everywhere=torch.tensor(
            np.asarray([np.asarray(p.box_xyxy).reshape(2, 2) / side for p in people], np.float32)
        ).reshape(len(people), 4),
    )


def pose_questions(
    config: VisionLLMConfig, tokenizer: Tokenizer, *, pictures: int, seed: int, whole: float = 0.6
) -> Iterator[tuple[Spoken, Tensor, Tensor]]:
    """Endless questions with pictures for the language model alone.

    Args:
        config: of the whole model.
        tokenizer: of the language model.
        pictures: how many share a question.
        seed: of everything random.
        whole: share of the questions that name all keypoints in their usual order.

    Yields:
        What is said; tiles [pictures,3,I,I]; int64 [K], which of `NAMES` each keypoint is.
    """
    rng = np.random.default_rng(seed)
    while True:
        spoken, _, chosen = _question(rng, config, tokenizer, whole)
        tiles = [tile(_scene(rng, 128, 128), config) for _ in range(pictures)]
        yield spoken, torch.cat(tiles), torch.tensor(chosen)


def pose_batches(
    config: VisionLLMConfig,
    tokenizer: Tokenizer,
    *,
    batch: int,
    spoken_to: int,
    seed: int,
    whole: float = 0.6,
) -> Iterator[PoseBatch]:
    """Endless batches; a function of the seed.

    Args:
        config: of the whole model.
        tokenizer: of the language model.
        batch: pictures of one batch.
        spoken_to: how many of them the language model sees.
        seed: of everything random.
        whole: share of the questions that name all keypoints in their usual order.
    """
    rng = np.random.default_rng(seed)
    for step in itertools.count():
        height, width = _SIZES[int(rng.integers(len(_SIZES)))]
        if step % _SAME_QUESTION == 0:
            spoken, objects, chosen = _question(rng, config, tokenizer, whole)
        scenes = [_scene(rng, height, width) for _ in range(batch)]
        yield PoseBatch(
            pixels=torch.cat([picture(scene) for scene in scenes]),
            tiles=torch.cat([tile(scene, config) for scene in scenes[:spoken_to]]),
            spoken=spoken,
            chosen=torch.tensor(chosen),
            truth=tuple(truth_of(scene, objects, chosen) for scene in scenes),
            size=(height, width),
        )


def picture(scene: world.Scene) -> Tensor:
    """Pixels [1,3,H,W] of the keypoint decoder, at the scene's own size."""
    height, width = scene.image.shape[:2]
    constants = PREPROCESS.detector
    assert constants is not None, "the compiler's constants name the detector"
    prepared = detector_input(
        scene.image,
        shortest=min(height, width),
        longest=max(height, width),
        divisor=32,
        buckets=[(height, width)],
        mean=constants.mean,
        std=constants.std,
    )
    return torch.from_numpy(prepared.pixels)


def tile(scene: world.Scene, config: VisionLLMConfig) -> Tensor:
    """Pixels [1,3,I,I] of the vision encoder."""
    clip, size = PREPROCESS.clip, config.vision.image_size
    return torch.from_numpy(
        clip_tiles(scene.image, image_size=size, max_tiles=1, mean=clip.mean, std=clip.std)
    )


def _question(
    rng: np.random.Generator, config: VisionLLMConfig, tokenizer: Tokenizer, whole: float
) -> tuple[Spoken, list[str], list[int]]:
    """A question, the objects it names, and which keypoints."""
    objects, chosen = _objects(rng), _keypoints(rng, whole)
    spoken = say(
        tokenizer,
        config,
        objects,
        [NAMES[i] for i in chosen],
        wording=_some(rng, POSE_QUESTIONS),
        detection=_some(rng, prompts.DETECTION_QUESTIONS),
    )
    return spoken, objects, chosen


def _scene(rng: np.random.Generator, height: int, width: int) -> world.Scene:
    crowd = rng.random() < _CROWD_SHARE
    shapes, least, most = (_CROWD, 3, 4) if crowd else (world.SHAPES, 1, 5)
    while True:
        scene = world.make_scene(
            rng, width=width, height=height, min_items=least, max_items=most, shapes=shapes
        )
        if any(item.keypoints is not None for item in scene.items):
            return scene


def _objects(rng: np.random.Generator) -> list[str]:
    kind = rng.random()
    if kind < 0.65:
        return ["person"]
    others = list(rng.permutation(world.SHAPES[:-1]))[: int(rng.integers(1, 4))]
    if kind < 0.9:
        return [str(name) for name in rng.permutation(["person", *others])]
    color = world.COLORS[int(rng.integers(len(world.COLORS)))]
    return [str(name) for name in rng.permutation([f"{color} person", *others[:1]])]


def _keypoints(rng: np.random.Generator, whole: float) -> list[int]:
    if rng.random() < whole:
        return list(range(len(NAMES)))
    count = int(rng.integers(1, len(NAMES) + 1))
    return [int(i) for i in rng.permutation(len(NAMES))[:count]]


def _some(rng: np.random.Generator, texts: Sequence[str]) -> str:
    """The first wording half of the time: it is the one the runtime uses."""
    return texts[0] if rng.random() < 0.5 else texts[int(rng.integers(len(texts)))]
