"""Visual prompts: what a user points at, as masks of the picture.

Coordinates are pixels of the picture as it was given, x to the right, y down, the first pixel's
corner at (0, 0). Every kind becomes a mask of the picture first, and that a mask of the model's
square input: resized bilinearly without keeping the aspect, every value above zero is foreground.

| kind | mask |
|---|---|
| `Box` | rows int(y1) .. int(y2), columns int(x1) .. int(x2), both ends included |
| `Point` | a disc around its pixel, radius 2 pixels of the model's input |
| `Polygon` | pixels whose centre is inside, even-odd |
| `Scribble` | a line through its points, 4 pixels of the model's input wide by default |
| `Mask` | itself |

Source: VisionLLM v2 (arXiv 2406.08394), section 3.2 and appendix B.1 for the kinds of prompt, the
code for boxes and for the resizing; sizes of discs and lines are our choice.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.images import load_image
from visionllm_edge.runtime.resize import touched_by_bilinear

__all__ = [
    "MAX_REGIONS",
    "REGIONS_AT_ONCE",
    "Box",
    "Mask",
    "Point",
    "Polygon",
    "Region",
    "Scribble",
    "model_mask",
    "picture_mask",
]

Bits = npt.NDArray[np.bool_]

MAX_REGIONS = 64
REGIONS_AT_ONCE = 16
"""Regions of one run of the encoder: at the released sizes one takes 5 MB of maps, with copies."""
POINT_RADIUS = 2.0
SCRIBBLE_WIDTH = 4.0
_MAX_VERTICES = 10_000


@dataclass(frozen=True)
class Box:
    """A rectangle by two corners; what sticks out of the picture is cut off."""

    x1: float
    y1: float
    x2: float
    y2: float

    def __post_init__(self) -> None:
        """Refuse what is no rectangle.

        Raises:
            InputError: not four numbers in order.
        """
        _numbers("box", (self.x1, self.y1, self.x2, self.y2))
        if self.x1 >= self.x2 or self.y1 >= self.y2:
            raise InputError(
                f"box: expected x1 < x2 and y1 < y2, got {_listed(self.corners)}. "
                "Give the upper left corner first."
            )

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2."""
        return self.x1, self.y1, self.x2, self.y2


@dataclass(frozen=True)
class Point:
    """One place in the picture."""

    x: float
    y: float

    def __post_init__(self) -> None:
        """Refuse what is no place.

        Raises:
            InputError: not two numbers.
        """
        _numbers("point", (self.x, self.y))


@dataclass(frozen=True)
class Polygon:
    """A closed outline of at least three corners that are not on one line."""

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        """Refuse what has no inside.

        Raises:
            InputError: too few corners, no numbers, or all on one line.
        """
        object.__setattr__(self, "points", _vertices("polygon", self.points, least=3))
        corners = np.array(self.points, np.float64)
        edges = corners - corners[0]
        longest = edges[np.argmax((edges**2).sum(1))]
        across = np.abs(edges[:, 0] * longest[1] - edges[:, 1] * longest[0])
        if across.max() <= 1e-9 * max(1.0, float((longest**2).sum())):
            raise InputError(
                f"polygon: expected corners around an area, got {len(self.points)} on one line. "
                "Add a corner beside it, or use a scribble."
            )


@dataclass(frozen=True)
class Scribble:
    """A hand-drawn line through at least two points.

    Attributes:
        points: (x, y) in the order of drawing.
        width: of the line, in pixels of the model's input; 3 to 10 is what models are trained on.
    """

    points: tuple[tuple[float, float], ...]
    width: float = SCRIBBLE_WIDTH

    def __post_init__(self) -> None:
        """Refuse what is no line.

        Raises:
            InputError: too few points, no numbers, or no usable width.
        """
        object.__setattr__(self, "points", _vertices("scribble", self.points, least=2))
        _numbers("scribble width", (self.width,))
        if not 1.0 <= self.width <= 64.0:
            raise InputError(
                f"scribble width: expected 1 to 64 pixels of the model's input, got {self.width:g}."
            )


@dataclass(frozen=True, eq=False)
class Mask:
    """Pixels of the picture, the same size as the picture.

    Attributes:
        pixels: bool or uint8 ``[H, W]``, not zero is foreground; or an image file, in which what
            is brighter than half of its brightest pixel is foreground.
    """

    pixels: npt.NDArray[np.bool_] | npt.NDArray[np.uint8] | str | os.PathLike[str]


Region = Box | Point | Polygon | Scribble | Mask


def model_mask(region: Region, size: tuple[int, int], side: int) -> Bits:
    """A region as a mask of the model's square input.

    Args:
        region: any kind.
        size: height and width of the picture.
        side: pixels per side of the model's input.

    Returns:
        bool ``[side, side]``, at least one pixel set.

    Raises:
        InputError: the region is empty, outside the picture, of another size, or so small that
            nothing of it is left.
    """
    mask = touched_by_bilinear(picture_mask(region, size, side), side, side)
    if not mask.any():
        raise InputError(
            f"{_kind(region)}: expected a region that is visible at the {side}x{side} pixels the "
            f"model sees, got one of a picture of {_size(size)} that vanishes. Mark a larger area."
        )
    return mask


def picture_mask(region: Region, size: tuple[int, int], side: int) -> Bits:
    """A region as a mask of its picture.

    Args:
        region: any kind.
        size: height and width of the picture.
        side: pixels per side of the model's input, which the sizes of discs and lines refer to.

    Returns:
        bool ``[H, W]``, at least one pixel set.

    Raises:
        InputError: the region is empty, outside the picture, or of another size.
    """
    if isinstance(region, Mask):
        return _given(region, size)
    if isinstance(region, Box):
        mask = _filled_box(region, size)
    elif isinstance(region, Point):
        _inside("point", ((region.x, region.y),), size)
        centre = (math.floor(region.x) + 0.5, math.floor(region.y) + 0.5)
        mask = _line((centre, centre), size, side, POINT_RADIUS)
    elif isinstance(region, Polygon):
        mask = _filled_polygon(region, size, side)
    elif isinstance(region, Scribble):
        mask = _line(region.points, size, side, region.width / 2)
    else:
        raise InputError(
            "region: expected Box, Point, Polygon, Scribble or Mask, got "
            f"{type(region).__name__}. Wrap the coordinates, for example Box(10, 10, 50, 40)."
        )
    if not mask.any():
        raise InputError(
            f"{_kind(region)}: expected a region inside the picture of {_size(size)}, got one "
            "that lies outside. Coordinates are pixels, x before y."
        )
    return mask


def _filled_box(box: Box, size: tuple[int, int]) -> Bits:
    height, width = size
    mask = np.zeros(size, np.bool_)
    if box.x2 < 0 or box.y2 < 0 or box.x1 >= width or box.y1 >= height:
        return mask
    x1, x2 = (min(max(int(x), 0), width - 1) for x in (box.x1, box.x2))
    y1, y2 = (min(max(int(y), 0), height - 1) for y in (box.y1, box.y2))
    mask[y1 : y2 + 1, x1 : x2 + 1] = True
    return mask


def _filled_polygon(polygon: Polygon, size: tuple[int, int], side: int) -> Bits:
    """Pixels whose centre is inside, by the even-odd rule; the outline's own if there are none."""
    height, width = size
    corners = (*polygon.points, polygon.points[0])
    # An entry says that everything to the right of it changes sides.
    crossings = np.zeros((height, width + 1), np.uint8)
    for (ax, ay), (bx, by) in pairwise(corners):
        if ay == by:
            continue
        first, last = (min(max(math.ceil(y - 0.5), 0), height) for y in sorted((ay, by)))
        rows = np.arange(first, last)
        x = ax + (rows + 0.5 - ay) * ((bx - ax) / (by - ay))
        columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        crossings[rows, columns] ^= 1
    inside = np.bitwise_xor.accumulate(crossings[:, :width], axis=1).astype(np.bool_)
    return inside if inside.any() else _line(corners, size, side, 0.5)


def _line(
    points: Sequence[tuple[float, float]], size: tuple[int, int], side: int, radius: float
) -> Bits:
    """Pixels whose centre is within a radius of a line; distances in pixels of the model's input.

    The pixels that its points lie in are set in any case: the picture may be so small that no
    centre is near enough.
    """
    height, width = size
    across, down = side / width, side / height
    mask = np.zeros(size, np.bool_)
    for (ax, ay), (bx, by) in pairwise(points):
        # Only the window around a piece is looked at.
        columns = _window(min(ax, bx) - radius / across, max(ax, bx) + radius / across, width)
        rows = _window(min(ay, by) - radius / down, max(ay, by) + radius / down, height)
        if not (len(rows) and len(columns)):
            continue
        x = (columns + 0.5 - ax)[None, :] * across
        y = (rows + 0.5 - ay)[:, None] * down
        dx, dy = (bx - ax) * across, (by - ay) * down
        length = dx * dx + dy * dy
        along = np.clip((x * dx + y * dy) / length, 0.0, 1.0) if length > 0 else 0.0
        near = (x - along * dx) ** 2 + (y - along * dy) ** 2 <= radius * radius
        mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] |= near
    for px, py in points:
        if 0 <= px < width and 0 <= py < height:
            mask[int(py), int(px)] = True
    return mask


def _window(low: float, high: float, length: int) -> npt.NDArray[np.int64]:
    first, last = max(0.0, math.floor(low)), min(float(length), math.ceil(high) + 1.0)
    return np.arange(int(first), int(max(first, last)))


def _given(mask: Mask, size: tuple[int, int]) -> Bits:
    pixels = mask.pixels
    if isinstance(pixels, np.ndarray):
        if pixels.ndim != 2 or not (pixels.dtype == np.bool_ or pixels.dtype == np.uint8):
            raise InputError(
                f"mask: expected a bool or uint8 array [H, W], got {pixels.dtype} "
                f"{list(pixels.shape)}. Convert it first."
            )
        bits: Bits = pixels != 0
    else:
        grey = load_image(Path(pixels)).max(axis=2)
        bits = grey > int(grey.max()) // 2
    if bits.shape != size:
        raise InputError(
            f"mask: expected the size of the picture, {_size(size)}, got {_size(bits.shape)}. "
            "Resize the mask, or give the picture that it was made for."
        )
    if not bits.any():
        raise InputError(
            "mask: expected at least one pixel of the region, got none that is set. "
            "Foreground is what is not zero."
        )
    return bits


def _inside(what: str, points: Sequence[tuple[float, float]], size: tuple[int, int]) -> None:
    for x, y in points:
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise InputError(
                f"{what} {x:g},{y:g}: expected a place inside the picture of {_size(size)}, got "
                "one outside. Coordinates are pixels, x before y."
            )


def _vertices(what: str, points: object, *, least: int) -> tuple[tuple[float, float], ...]:
    if isinstance(points, np.ndarray):
        points = points.tolist()
    if not isinstance(points, Sequence) or isinstance(points, str):
        raise InputError(f"{what}: expected a sequence of (x, y), got {type(points).__name__}.")
    if not least <= len(points) <= _MAX_VERTICES:
        raise InputError(
            f"{what}: expected {least} to {_MAX_VERTICES} points, got {len(points)}. "
            f"A {what} needs at least {least}."
        )
    pairs: list[tuple[float, float]] = []
    for point in points:
        if not isinstance(point, Sequence) or isinstance(point, str) or len(point) != 2:
            raise InputError(f"{what}: expected (x, y) for every point, got {point!r}.")
        _numbers(what, point)
        pairs.append((float(point[0]), float(point[1])))
    return tuple(pairs)


def _numbers(what: str, values: Sequence[object]) -> None:
    for value in values:
        is_number = isinstance(value, (int, float, np.integer, np.floating))
        if not is_number or isinstance(value, bool) or not math.isfinite(float(value)):  # type: ignore[arg-type]
            raise InputError(
                f"{what}: expected finite numbers of pixels, got {value!r}. Change the coordinates."
            )


def _kind(region: Region) -> str:
    name = type(region).__name__.lower()
    return f"box {_listed(region.corners)}" if isinstance(region, Box) else name


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _size(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]} pixels"
