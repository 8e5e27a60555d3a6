"""How somebody points at an item: a box, points, a scribble, a polygon, its mask.

The result is always the pixels that were marked, as the region encoder wants them. Every function
depends on the item's visible mask and on the generator that is passed in.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from visionllm_edge.runtime.shapes_world.scene import Item

__all__ = ["POINTERS", "Pointer", "point_at"]

Pointer = Literal["box", "point", "scribble", "polygon", "mask"]
POINTERS: tuple[Pointer, ...] = ("box", "point", "scribble", "polygon", "mask")

_BOX_JITTER = 0.06
_POLYGON_CORNERS = 12
_POINTS, _STROKES = 4, 4  # one less is the most


def point_at(item: Item, rng: np.random.Generator, pointer: Pointer) -> NDArray[np.bool_]:
    """Mark an item.

    Args:
        item: what is pointed at.
        rng: where exactly, and how accurately.
        pointer: with what.

    Returns:
        Marked pixels, bool ``[H, W]``; at least one. Boxes and polygons may reach over the item's
        edge, points and scribbles begin on it.
    """
    marked = {
        "box": _box,
        "point": _points,
        "scribble": _scribble,
        "polygon": _polygon,
        "mask": _mask,
    }[pointer](item, rng)
    return marked if marked.any() else item.mask


def _box(item: Item, rng: np.random.Generator) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = item.box_xyxy
    reach = np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0]) * _BOX_JITTER
    x0, y0, x1, y1 = np.array(item.box_xyxy) + rng.uniform(-1, 1, 4) * reach
    marked = np.zeros_like(item.mask)
    marked[max(0, int(y0)) : int(y1) + 1, max(0, int(x0)) : int(x1) + 1] = True
    return marked


def _points(item: Item, rng: np.random.Generator) -> NDArray[np.bool_]:
    image, draw = _canvas(item)
    radius = rng.uniform(1.0, 3.0)
    for x, y in _spots(item, rng, int(rng.integers(1, _POINTS))):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    return np.asarray(image, dtype=np.bool_)


def _scribble(item: Item, rng: np.random.Generator) -> NDArray[np.bool_]:
    image, draw = _canvas(item)
    spots = _spots(item, rng, int(rng.integers(2, _STROKES)))
    draw.line(spots, fill=1, width=int(rng.integers(2, 5)))
    return np.asarray(image, dtype=np.bool_)


def _polygon(item: Item, rng: np.random.Generator) -> NDArray[np.bool_]:
    """The item's outline seen from its centre, a corner for each direction, roughly drawn."""
    rows, columns = np.nonzero(item.mask)
    y, x = rows.mean(), columns.mean()
    turn = np.arctan2(rows - y, columns - x) / (2 * np.pi) % 1.0
    slot = (turn * _POLYGON_CORNERS).astype(np.int64) % _POLYGON_CORNERS
    corners = []
    for k in range(_POLYGON_CORNERS):
        inside = np.flatnonzero(slot == k)
        if len(inside):
            far = inside[np.argmax(np.hypot(rows[inside] - y, columns[inside] - x))]
            stretch = rng.uniform(0.9, 1.15)
            corners.append((x + (columns[far] - x) * stretch, y + (rows[far] - y) * stretch))
    image, draw = _canvas(item)
    if len(corners) > 2:
        draw.polygon(corners, fill=1)
    return np.asarray(image, dtype=np.bool_)


def _mask(item: Item, rng: np.random.Generator) -> NDArray[np.bool_]:
    del rng
    return item.mask


def _spots(item: Item, rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """Pixels (x, y) of the item, not at its edge where it is thick enough."""
    inner = item.mask.copy()
    inner[1:] &= item.mask[:-1]
    inner[:-1] &= item.mask[1:]
    inner[:, 1:] &= item.mask[:, :-1]
    inner[:, :-1] &= item.mask[:, 1:]
    rows, columns = np.nonzero(inner if inner.any() else item.mask)
    picked = rng.integers(0, len(rows), size=count)
    return [(float(columns[i]), float(rows[i])) for i in picked]


def _canvas(item: Item) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    height, width = item.mask.shape
    image = Image.new("1", (width, height), 0)
    return image, ImageDraw.Draw(image)
