"""Outlines of the items: a shape's name and size become a small anti-aliased alpha image.

An outline is drawn alone, on a crop as small as the item, at twice the resolution, and is then
averaged down; where it stands in the picture is decided later (``scene.py``).

Coordinates are pixel edges: pixel ``i`` covers ``[i, i + 1)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["Outline", "draw_outline"]

_SUPERSAMPLE = 2
_TILT = math.radians(14)
_Point = tuple[float, float]

# The reach of each elbow, wrist, knee and ankle below follows from these lengths, in units of the
# figure's height when it stands upright.
_HEAD_RADIUS = 0.125
_LIMB_WIDTH = 0.105
_TORSO_WIDTH = 0.17


@dataclass(frozen=True)
class Outline:
    """One drawn item, not yet placed.

    Attributes:
        alpha: Cover of each pixel, ``[h, w]`` float32 in 0..1.
        keypoints: ``[17, 2]`` float64 in crop coordinates (COCO order), for a person only.
    """

    alpha: NDArray[np.float32]
    keypoints: NDArray[np.float64] | None


def draw_outline(shape: str, size_px: float, rng: np.random.Generator) -> Outline:
    """Draw one item whose longer side is about ``size_px``.

    Args:
        shape: One of ``SHAPES``.
        size_px: Longer side of the item, in pixels of the picture.
        rng: Decides rotation, proportions and pose.
    """
    if shape == "person":
        return _draw_person(size_px, rng)
    if shape == "circle":
        return _draw_circle(size_px)
    return _draw_polygon(_fit(_rotated(_corners(shape, rng), rng), size_px))


def _corners(shape: str, rng: np.random.Generator) -> NDArray[np.float64]:
    if shape == "square":
        return np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    if shape == "triangle":
        half_base = rng.uniform(0.9, 1.1)
        return np.array([(0.0, -1.0), (half_base, 0.85), (-half_base, 0.85)])
    if shape == "diamond":
        half_width = rng.uniform(0.62, 0.76)
        return np.array([(0.0, -1.0), (half_width, 0.0), (0.0, 1.0), (-half_width, 0.0)])
    if shape == "star":
        inner = rng.uniform(0.42, 0.5)
        angles = -math.pi / 2 + np.arange(10) * math.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.0, inner)
        return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    raise AssertionError(f"no outline for shape {shape!r}")


def _rotated(points: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    angle = rng.uniform(-_TILT, _TILT)
    cos, sin = math.cos(angle), math.sin(angle)
    rotated: NDArray[np.float64] = points @ np.array([[cos, sin], [-sin, cos]])
    return rotated


def _fit(points: NDArray[np.float64], size_px: float) -> NDArray[np.float64]:
    low, high = points.min(axis=0), points.max(axis=0)
    fitted: NDArray[np.float64] = (points - low) * (size_px / float((high - low).max()))
    return fitted


def _canvas(width: float, height: float) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    pixels = (math.ceil(width) * _SUPERSAMPLE, math.ceil(height) * _SUPERSAMPLE)
    image = Image.new("L", pixels, 0)
    return image, ImageDraw.Draw(image)


def _ink(point: Sequence[float]) -> _Point:
    # Pillow puts whole numbers on pixel centres; ours are pixel edges.
    return (point[0] * _SUPERSAMPLE - 0.5, point[1] * _SUPERSAMPLE - 0.5)


def _outline(image: Image.Image, keypoints: NDArray[np.float64] | None = None) -> Outline:
    alpha = np.asarray(image.reduce(_SUPERSAMPLE), dtype=np.float32) / np.float32(255)
    return Outline(alpha, keypoints)


def _draw_polygon(points: NDArray[np.float64]) -> Outline:
    width, height = points.max(axis=0)
    image, draw = _canvas(width, height)
    draw.polygon([_ink(point) for point in points.tolist()], fill=255)
    return _outline(image)


def _draw_circle(size_px: float) -> Outline:
    image, draw = _canvas(size_px, size_px)
    draw.ellipse((_ink((0.0, 0.0)), _ink((size_px, size_px))), fill=255)
    return _outline(image)


def _draw_person(size_px: float, rng: np.random.Generator) -> Outline:
    keypoints, head = _pose(rng)
    limb = _LIMB_WIDTH / 2
    low = np.minimum(keypoints.min(axis=0) - limb, head - _HEAD_RADIUS)
    high = np.maximum(keypoints.max(axis=0) + limb, head + _HEAD_RADIUS)
    scale = size_px / float((high - low).max())
    keypoints = (keypoints - low) * scale
    head = (head - low) * scale
    width, height = ((high - low) * scale).tolist()
    image, draw = _canvas(width, height)

    points: list[list[float]] = keypoints.tolist()
    hip = [(points[11][0] + points[12][0]) / 2, (points[11][1] + points[12][1]) / 2]
    neck = [(points[5][0] + points[6][0]) / 2, (points[5][1] + points[6][1]) / 2]
    limb_px = _LIMB_WIDTH * scale
    _draw_limb(draw, [neck, hip], _TORSO_WIDTH * scale)
    _draw_limb(draw, [points[5], points[6]], limb_px)
    _draw_limb(draw, [points[11], points[12]], limb_px)
    _draw_limb(draw, [head.tolist(), neck], limb_px)
    for joints in ((5, 7, 9), (6, 8, 10), (11, 13, 15), (12, 14, 16)):
        _draw_limb(draw, [points[joint] for joint in joints], limb_px)
    _draw_disc(draw, head.tolist(), _HEAD_RADIUS * scale)
    return _outline(image, keypoints)


def _draw_disc(draw: ImageDraw.ImageDraw, centre: Sequence[float], radius: float) -> None:
    low = _ink((centre[0] - radius, centre[1] - radius))
    high = _ink((centre[0] + radius, centre[1] + radius))
    draw.ellipse((low, high), fill=255)


def _draw_limb(draw: ImageDraw.ImageDraw, joints: Sequence[Sequence[float]], width: float) -> None:
    thickness = max(1, round(width * _SUPERSAMPLE))
    draw.line([_ink(joint) for joint in joints], fill=255, width=thickness)
    for joint in joints:
        _draw_disc(draw, joint, width / 2)


def _pose(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A pose of unit height: COCO's 17 keypoints and the centre of the head.

    The figure faces the viewer, so its left side is on the right of the picture.
    """
    lean = rng.uniform(-0.15, 0.15)
    up = np.array([math.sin(lean), -math.cos(lean)])
    side = np.array([math.cos(lean), math.sin(lean)])
    hip = np.zeros(2)
    neck = hip + 0.33 * up
    nod = lean + rng.uniform(-0.25, 0.25)
    head_up = np.array([math.sin(nod), -math.cos(nod)])
    head_side = np.array([math.cos(nod), math.sin(nod)])
    head = neck + 0.185 * head_up

    keypoints = np.empty((17, 2))
    keypoints[0] = head
    for offset, sign in ((0, 1.0), (1, -1.0)):
        keypoints[1 + offset] = head + 0.045 * sign * head_side + 0.035 * head_up
        keypoints[3 + offset] = head + 0.095 * sign * head_side
        shoulder = neck + 0.115 * sign * side
        hip_joint = hip + 0.07 * sign * side
        # Angles are measured from straight down, outwards positive.
        arm = rng.uniform(0.2, 2.4)
        forearm = arm + rng.uniform(-0.5, 0.9)
        thigh = rng.uniform(0.05, 0.6)
        shin = thigh + rng.uniform(-0.35, 0.25)
        elbow = shoulder + 0.17 * _outwards(arm, sign)
        knee = hip_joint + 0.22 * _outwards(thigh, sign)
        keypoints[5 + offset] = shoulder
        keypoints[7 + offset] = elbow
        keypoints[9 + offset] = elbow + 0.16 * _outwards(forearm, sign)
        keypoints[11 + offset] = hip_joint
        keypoints[13 + offset] = knee
        keypoints[15 + offset] = knee + 0.21 * _outwards(shin, sign)
    return keypoints, head


def _outwards(angle: float, sign: float) -> NDArray[np.float64]:
    return np.array([sign * math.sin(angle), math.cos(angle)])
