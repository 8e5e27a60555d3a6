"""How well a keypoint decoder in training does on pictures that it never learns from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.tiny.pose_batches import (
    NAMES,
    PoseTruth,
    Spoken,
    picture,
    say,
    tile,
    truth_of,
)
from visionllm_edge.export.tiny.pose_losses import box_overlap
from visionllm_edge.runtime import shapes_world as world
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["HeldOut", "held_out", "right_keypoints"]

_SEED = 770_077
_NEAR = 0.2
"""A keypoint is right within this share of the distance from left shoulder to right hip."""
_SAME = 0.5
"""Intersection over union from which a box is the person's."""


@dataclass(frozen=True)
class HeldOut:
    """Pictures of 128x128 px with at least one person, as the runtime would ask about them.

    Attributes:
        pixels: [n,3,H,W].
        tiles: [n,3,I,I].
        spoken: the question.
        truth: per picture, class ``person`` and all keypoints.
        size: (height, width) in pixels.
    """

    pixels: Tensor
    tiles: Tensor
    spoken: Spoken
    truth: tuple[PoseTruth, ...]
    size: tuple[int, int]


def held_out(config: VisionLLMConfig, tokenizer: Tokenizer, *, count: int) -> HeldOut:
    """The first ``count`` such pictures of a seed that no training uses."""
    rng = np.random.default_rng(_SEED)
    scenes: list[world.Scene] = []
    while len(scenes) < count:
        scene = world.make_scene(rng)
        if any(item.keypoints is not None for item in scene.items):
            scenes.append(scene)
    return HeldOut(
        pixels=torch.cat([picture(scene) for scene in scenes]),
        tiles=torch.cat([tile(scene, config) for scene in scenes]),
        spoken=say(tokenizer, config, ["person"], NAMES),
        truth=tuple(truth_of(scene, ["person"], range(len(NAMES))) for scene in scenes),
        size=(128, 128),
    )


def right_keypoints(
    logits: Tensor, boxes: Tensor, keypoints: Tensor, truth: PoseTruth, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Which visible keypoints of one picture were found.

    The best-scoring instance that covers a person counts; a person that none covers has no keypoint
    right.

    Args:
        logits: [I] for the class.
        boxes: [I,4] cxcywh.
        keypoints: [I,17,2].
        truth: of the picture.
        size: (height, width) in pixels.

    Returns:
        right and visible, both bool [G,17].
    """
    scale = torch.tensor([float(size[1]), float(size[0])])
    overlap = box_overlap(boxes, truth.boxes)
    wanted = truth.keypoints[..., :2] * scale
    visible = truth.keypoints[..., 2] == 2
    right = torch.zeros_like(visible)
    left_shoulder, right_hip = NAMES.index("left shoulder"), NAMES.index("right hip")
    reach = (wanted[:, left_shoulder] - wanted[:, right_hip]).norm(dim=-1)
    for g in range(len(truth.boxes)):
        covering = overlap[:, g] >= _SAME
        if covering.any():
            best = int(torch.where(covering, logits, -torch.inf).argmax())
            distance = (keypoints[best] * scale - wanted[g]).norm(dim=-1)
            right[g] = distance <= _NEAR * reach[g]
    return right & visible, visible
