"""Scenes of the shapes world: which items stand where, the picture, and its exact truth.

Items are placed one by one, the later over the earlier. A place is taken only if every item keeps
most of its area in sight, no two items of one colour touch, and the visible boxes' centres stay
apart in x, so that "from left to right" has one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.shapes_world.background import make_background
from visionllm_edge.runtime.shapes_world.names import COLOR_RGB, COLORS, SHAPES
from visionllm_edge.runtime.shapes_world.outline import Outline, draw_outline

__all__ = [
    "MIN_CENTRE_GAP",
    "MIN_VISIBLE",
    "Item",
    "Placed",
    "Scene",
    "finished_item",
    "make_scene",
    "paint",
    "tight_box",
]

MIN_VISIBLE = 0.6
"""Smallest visible part of an item's area."""

MIN_CENTRE_GAP = 6.0 / 128
"""Smallest distance of two box centres in x, as a part of the picture's shorter side."""

_SIZES = (20.0 / 128, 52.0 / 128)
# A stick figure is mostly air: smaller than this its limbs are thinner than two pixels at 128 px.
_PERSON_SIZES = (34.0 / 128, 60.0 / 128)
_PLACES_PER_ITEM = 24
_SCENES_PER_CALL = 60
_SMALLEST_SIDE_PX = 32


@dataclass(frozen=True, eq=False)
class Item:
    """One thing in a scene.

    Attributes:
        shape: One of ``SHAPES``.
        color: One of ``COLORS``.
        box_xyxy: Tight box around the visible mask, in pixel edges: ``x1``, ``y1`` are exclusive.
        mask: Visible pixels, bool ``[H, W]``.
        keypoints: For a person ``[17, 3]`` float32 (x, y, v) in COCO's order with COCO's v: 2 is in
            sight, 1 is hidden by another item. ``None`` for other shapes.
    """

    shape: str
    color: str
    box_xyxy: tuple[float, float, float, float]
    mask: NDArray[np.bool_]
    keypoints: NDArray[np.float32] | None

    @property
    def name(self) -> str:
        """Colour and shape: ``red circle``."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and what is in it.

    Attributes:
        image: ``[H, W, 3]`` uint8 RGB.
        items: From left to right by the centre of the visible box.
    """

    image: NDArray[np.uint8]
    items: tuple[Item, ...]


@dataclass
class Placed:
    """An item with its place, before the picture exists.

    Attributes:
        shape: One of ``SHAPES``.
        color: One of ``COLORS``.
        outline: What it looks like, on a crop of its own.
        left: Where the crop begins, in pixels of the picture.
        top: The same, downwards.
        solid: Pixels of the crop that the item covers, bool ``[h, w]``.
        visible: Those of them that nothing hides.
        box: Tight box around the visible ones, in pixels of the picture, ends exclusive.
    """

    shape: str
    color: str
    outline: Outline
    left: int
    top: int
    solid: NDArray[np.bool_]
    visible: NDArray[np.bool_]
    box: tuple[int, int, int, int]


def make_scene(
    rng: np.random.Generator,
    *,
    width: int = 128,
    height: int = 128,
    min_items: int = 1,
    max_items: int = 5,
    shapes: Sequence[str] = SHAPES,
) -> Scene:
    """Make a scene; the same generator state gives the same scene.

    Args:
        rng: Source of everything random.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
        min_items: Fewest items.
        max_items: Most items; each number in between is equally likely.
        shapes: What to draw from ``SHAPES``; a shape that is listed twice is twice as likely.

    Raises:
        InputError: The picture is too small, or so many items do not fit.
    """
    if min(width, height) < _SMALLEST_SIDE_PX:
        raise InputError(
            f"shapes world: expected a picture of at least {_SMALLEST_SIDE_PX} px each way, "
            f"got {width}x{height}. Ask for a larger one."
        )
    if not 1 <= min_items <= max_items:
        raise InputError(
            f"shapes world: expected 1 <= min_items <= max_items, got {min_items} and {max_items}."
        )
    count = int(rng.integers(min_items, max_items + 1))
    for _ in range(_SCENES_PER_CALL):
        placed = _place_items(rng, shapes, count, width, height)
        if len(placed) == count:
            return _finish(rng, placed, width, height)
    raise InputError(
        f"shapes world: {count} items do not fit a picture of {width}x{height} without hiding each "
        "other. Lower max_items."
    )


def _place_items(
    rng: np.random.Generator, shapes: Sequence[str], count: int, width: int, height: int
) -> list[Placed]:
    placed: list[Placed] = []
    short_side = min(width, height)
    for _ in range(count):
        shape = shapes[int(rng.integers(len(shapes)))]
        color = COLORS[int(rng.integers(len(COLORS)))]
        low, high = _PERSON_SIZES if shape == "person" else _SIZES
        outline = draw_outline(shape, rng.uniform(low, high) * short_side, rng)
        updated = _place_outline(rng, placed, shape, color, outline, width, height)
        if updated is None:
            return placed
        placed = updated
    return placed


def _place_outline(
    rng: np.random.Generator,
    placed: list[Placed],
    shape: str,
    color: str,
    outline: Outline,
    width: int,
    height: int,
) -> list[Placed] | None:
    """Find a place for one more item; ``None`` if none of a fixed number of tries is good."""
    solid = outline.alpha >= 0.5
    box = tight_box(solid)
    crop_height, crop_width = solid.shape
    gap = MIN_CENTRE_GAP * min(width, height)
    lefts = rng.integers(0, width - crop_width + 1, size=_PLACES_PER_ITEM).tolist()
    tops = rng.integers(0, height - crop_height + 1, size=_PLACES_PER_ITEM).tolist()
    for left, top in zip(lefts, tops, strict=True):
        new = Placed(
            shape=shape,
            color=color,
            outline=outline,
            left=left,
            top=top,
            solid=solid,
            visible=solid,
            box=(box[0] + left, box[1] + top, box[2] + left, box[3] + top),
        )
        below: list[Placed] = []
        for old in placed:
            hidden = _hide_behind(old, new)
            if hidden is None:
                break
            below.append(hidden)
        else:
            centres = sorted(_centre_x(item) for item in [*below, new])
            if all(b - a >= gap for a, b in pairwise(centres)):
                return [*below, new]
    return None


def _centre_x(item: Placed) -> float:
    return (item.box[0] + item.box[2]) / 2


def _hide_behind(old: Placed, new: Placed) -> Placed | None:
    """The old item with the new one in front of it; ``None`` if too little of it stays in sight."""
    left, top = max(old.box[0], new.box[0]), max(old.box[1], new.box[1])
    right, bottom = min(old.box[2], new.box[2]), min(old.box[3], new.box[3])
    if old.color == new.color and left <= right + 1 and top <= bottom + 1:
        return None
    if left >= right or top >= bottom:
        return old
    visible = old.visible.copy()
    rows = slice(top - old.top, bottom - old.top)
    columns = slice(left - old.left, right - old.left)
    cover = new.solid[top - new.top : bottom - new.top, left - new.left : right - new.left]
    visible[rows, columns] &= ~cover
    if visible.sum() < MIN_VISIBLE * old.solid.sum():
        return None
    box = tight_box(visible)
    return Placed(
        shape=old.shape,
        color=old.color,
        outline=old.outline,
        left=old.left,
        top=old.top,
        solid=old.solid,
        visible=visible,
        box=(box[0] + old.left, box[1] + old.top, box[2] + old.left, box[3] + old.top),
    )


def tight_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Box (x0, y0, x1, y1) around the true pixels, ends exclusive."""
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _finish(rng: np.random.Generator, placed: list[Placed], width: int, height: int) -> Scene:
    canvas = make_background(rng, width, height)
    for item in placed:
        paint(rng, canvas, item)
    grain = rng.standard_normal((height, width), dtype=np.float32)
    canvas += (grain * np.float32(rng.uniform(1.0, 7.0)))[:, :, None]
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    ordered = sorted(placed, key=_centre_x)
    return Scene(image, tuple(finished_item(one, width, height) for one in ordered))


def paint(rng: np.random.Generator, canvas: NDArray[np.float32], item: Placed) -> None:
    """Blend one item into the canvas, in place: a jittered colour, lit from one side."""
    height, width = item.outline.alpha.shape
    color = np.asarray(COLOR_RGB[item.color], dtype=np.float32)
    color = color * np.float32(rng.uniform(0.9, 1.08)) + rng.uniform(-9, 9, 3).astype(np.float32)
    light = rng.uniform(-0.16, 0.16, size=2).astype(np.float32)
    across = light[0] * np.linspace(-0.5, 0.5, width, dtype=np.float32)
    down = light[1] * np.linspace(-0.5, 0.5, height, dtype=np.float32)
    shade = (1 + across[None, :] + down[:, None])[:, :, None]
    region = canvas[item.top : item.top + height, item.left : item.left + width]
    region += (color * shade - region) * item.outline.alpha[:, :, None]


def finished_item(placed: Placed, width: int, height: int) -> Item:
    """The item as a part of a picture of that size."""
    mask = np.zeros((height, width), dtype=np.bool_)
    crop_height, crop_width = placed.visible.shape
    mask[placed.top : placed.top + crop_height, placed.left : placed.left + crop_width] = (
        placed.visible
    )
    x0, y0, x1, y1 = placed.box
    return Item(
        shape=placed.shape,
        color=placed.color,
        box_xyxy=(float(x0), float(y0), float(x1), float(y1)),
        mask=mask,
        keypoints=_keypoints(placed),
    )


def _keypoints(placed: Placed) -> NDArray[np.float32] | None:
    points = placed.outline.keypoints
    if points is None:
        return None
    height, width = placed.visible.shape
    columns = np.clip(points[:, 0].astype(np.int64), 0, width - 1)
    rows = np.clip(points[:, 1].astype(np.int64), 0, height - 1)
    keypoints = np.empty((len(points), 3), dtype=np.float32)
    keypoints[:, :2] = points + np.array([placed.left, placed.top])
    # Hidden means: something covers a pixel that the figure itself covers there.
    covered = placed.solid[rows, columns] & ~placed.visible[rows, columns]
    keypoints[:, 2] = np.where(covered, 1.0, 2.0)
    return keypoints
