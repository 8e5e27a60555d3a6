"""Skeletons on a picture: boxes of instances, keypoints, and the lines between them.

Every instance has one colour for its box and lines. A left side's keypoints are bright and a right
side's dark, so that mirrored poses can be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from visionllm_edge.runtime.keypoints import skeleton

if TYPE_CHECKING:
    from visionllm_edge.runtime.results import Pose

__all__ = ["draw_skeletons"]

Color = tuple[int, int, int]
Point = tuple[float, float]
# A line of two pixels on a canvas of this many.
_SIDE = 640
_COLORS: tuple[Color, ...] = (
    (0, 200, 255),
    (255, 170, 0),
    (120, 230, 90),
    (255, 110, 190),
    (240, 228, 66),
    (170, 140, 255),
)
_LEFT: Color = (255, 255, 255)
_RIGHT: Color = (40, 40, 40)
_MIDDLE: Color = (255, 60, 60)
_EDGE: Color = (0, 0, 0)


def draw_skeletons(canvas: Image.Image, poses: Sequence[Pose], scale: float) -> Image.Image:
    """A new picture with the poses on it, the best one on top.

    Args:
        canvas: RGB, already enlarged.
        poses: in pixels of the original image.
        scale: canvas pixels per pixel of the original image.
    """
    out = canvas.copy()
    drawing = ImageDraw.Draw(out)
    unit = max(1, round(max(out.size) / _SIDE))
    font = ImageFont.load_default(15 * unit)
    for index in range(len(poses) - 1, -1, -1):
        pose, color = poses[index], _COLORS[index % len(_COLORS)]
        points = [_inside((k.x * scale, k.y * scale), out.size) for k in pose.keypoints]
        _draw_box(drawing, pose, scale, out.size, color, unit, font)
        for width, ink in ((5 * unit, _EDGE), (3 * unit, color)):
            for a, b in skeleton([k.name for k in pose.keypoints]):
                drawing.line((*points[a], *points[b]), fill=ink, width=width)
        # As many points as a face has would cover a small one.
        radius = (4 if len(points) <= 20 else 2) * unit
        for keypoint, (x, y) in zip(pose.keypoints, points, strict=True):
            disc = (x - radius, y - radius, x + radius, y + radius)
            drawing.ellipse(disc, fill=_side_color(keypoint.name), outline=color, width=unit)
    return out


def _draw_box(
    drawing: ImageDraw.ImageDraw,
    pose: Pose,
    scale: float,
    size: tuple[int, int],
    color: Color,
    unit: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """The instance's box and, on a plate at its upper left corner, its label and score."""
    x0, y0, x1, y1 = (v * scale for v in pose.box_xyxy)
    (left, top), (right, bottom) = _inside((x0, y0), size), _inside((x1, y1), size)
    box = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
    drawing.rectangle(box, outline=color, width=2 * unit)
    text = f"{pose.label} {pose.score:.2f}"
    ink = drawing.textbbox((0, 0), text, font=font)
    wide, high = ink[2] - ink[0] + 6 * unit, ink[3] - ink[1] + 6 * unit
    at_x = max(0.0, min(box[0], size[0] - wide))
    at_y = box[1] - high if box[1] >= high else min(box[3], size[1] - high)
    drawing.rectangle((at_x, at_y, at_x + wide, at_y + high), fill=color)
    place = (at_x + 3 * unit - ink[0], at_y + 3 * unit - ink[1])
    drawing.text(place, text, fill=_EDGE, font=font)


def _side_color(name: str) -> Color:
    side = name.split(" ", 1)[0]
    return {"left": _LEFT, "right": _RIGHT}.get(side, _MIDDLE)


def _inside(point: Point, size: tuple[int, int]) -> Point:
    return min(max(point[0], 0.0), size[0] - 1.0), min(max(point[1], 0.0), size[1] - 1.0)
