"""From an RGB array to the inputs of the image stages.

The vision encoder gets square tiles (anyres), the detector and the keypoint decoder one picture in
the smallest size bucket that holds it. Constants come from the manifest; nothing here knows a model
or a backend.

Source: VisionLLM v2 (arXiv 2406.08394) and its published preprocessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.resize import resize_bilinear

__all__ = [
    "DetectorInput",
    "choose_grid",
    "clip_tiles",
    "detector_input",
    "grid_candidates",
    "pose_input",
    "pose_size",
]

Rgb = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DetectorInput:
    """One picture as a decoder of objects wants it. All sizes are (height, width) in pixels.

    Attributes:
        pixels: float32 [1,3,H,W], normalised; zero to the right of and below ``valid_size``.
        valid_size: the resized picture inside ``pixels``.
        bucket: H and W of ``pixels``.
        original_size: the picture before resizing.
    """

    pixels: Float
    valid_size: tuple[int, int]
    bucket: tuple[int, int]
    original_size: tuple[int, int]


def grid_candidates(max_tiles: int) -> list[tuple[int, int]]:
    """All grids (columns, rows) of at most ``max_tiles`` tiles, in the order they are tried.

    By area, then the longest shapes first, then the tall ones first.
    """
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
    ]
    return sorted(grids, key=lambda g: (g[0] * g[1], min(g) / max(g), g[0]))


def choose_grid(width: int, height: int, *, image_size: int, max_tiles: int) -> tuple[int, int]:
    """The grid (columns, rows) whose shape is closest to the picture's.

    A larger grid that is exactly as close wins when the picture has more than half its pixels.
    """
    shape = width / height
    best = (1, 1)
    best_distance = abs(shape - 1.0)
    for columns, rows in grid_candidates(max_tiles)[1:]:
        distance = abs(shape - columns / rows)
        fills_it = width * height > 0.5 * image_size * image_size * columns * rows
        if distance < best_distance or (distance == best_distance and fills_it):
            best, best_distance = (columns, rows), distance
    return best


def clip_tiles(
    image: Rgb, *, image_size: int, max_tiles: int, mean: Sequence[float], std: Sequence[float]
) -> Float:
    """Tiles of a picture for the vision encoder.

    Args:
        image: uint8 [H,W,3], RGB.
        image_size: side I of a tile.
        max_tiles: largest number of grid tiles.
        mean: per channel, for values 0..1.
        std: per channel, for values 0..1.

    Returns:
        float32 [n,3,I,I]: the tiles row by row, and after them the whole picture when there is
        more than one tile.
    """
    picture = Image.fromarray(image)
    columns, rows = choose_grid(
        picture.width, picture.height, image_size=image_size, max_tiles=max_tiles
    )
    spread = _resized(picture, image_size * columns, image_size * rows)
    tiles = spread.reshape(rows, image_size, columns, image_size, 3).swapaxes(1, 2)
    tiles = tiles.reshape(rows * columns, image_size, image_size, 3)
    if rows * columns > 1:
        tiles = np.concatenate([tiles, _resized(picture, image_size, image_size)[None]])
    scaled = tiles.astype(np.float32) / np.float32(255.0)
    return np.ascontiguousarray(_normalised(scaled, mean, std).transpose(0, 3, 1, 2))


def detector_input(
    image: Rgb,
    *,
    shortest: int,
    longest: int,
    divisor: int,
    buckets: Sequence[tuple[int, int]],
    mean: Sequence[float],
    std: Sequence[float],
) -> DetectorInput:
    """A picture for the detector: resized with its shape kept, normalised, padded with zeros.

    Args:
        image: uint8 [H,W,3], RGB.
        shortest: the shorter side is brought to this length,
        longest: unless the longer side then exceeds this one.
        divisor: both sides of every bucket are multiples of it.
        buckets: the (height, width) sizes that exist. None: the next multiples of ``divisor``.
            When none holds the picture, the picture is made smaller until the bucket that keeps
            most of it does.
        mean: per channel, for values 0..255.
        std: per channel, for values 0..255.
    """
    original = (image.shape[0], image.shape[1])
    scale = min(longest / max(original), shortest / min(original))
    valid, bucket = _placed(original, _scaled(original, scale), divisor, buckets)
    resized = image if valid == original else resize_bilinear(image, *valid)
    return DetectorInput(_padded(resized, bucket, mean, std), valid, bucket, original)


def pose_input(
    image: Rgb,
    *,
    shortest: int,
    longest: int,
    divisor: int,
    buckets: Sequence[tuple[int, int]],
    mean: Sequence[float],
    std: Sequence[float],
) -> DetectorInput:
    """A picture for the keypoint decoder; arguments as :func:`detector_input`.

    The size is rounded in another way (:func:`pose_size`), and the picture is resized by Pillow's
    bilinear filter, which averages where it makes a picture smaller.

    Source: VisionLLM v2 (arXiv 2406.08394), data of keypoints.
    """
    original = (image.shape[0], image.shape[1])
    wanted = pose_size(original, shortest=shortest, longest=longest)
    valid, bucket = _placed(original, wanted, divisor, buckets)
    picture = Image.fromarray(image)
    if valid != original:
        picture = picture.resize((valid[1], valid[0]), Image.Resampling.BILINEAR)
    pixels = _padded(np.asarray(picture), bucket, mean, std)
    return DetectorInput(pixels, valid, bucket, original)


def pose_size(size: tuple[int, int], *, shortest: int, longest: int) -> tuple[int, int]:
    """The (height, width) to which the keypoint decoder's picture is resized.

    The shorter side becomes ``shortest``, or, if the longer one would exceed ``longest`` then,
    what brings that one to ``longest``, rounded. The longer side follows, cut to a whole number.
    """
    short, long = min(size), max(size)
    if long / short * shortest > longest:
        shortest = max(1, round(longest * short / long))
    other = max(1, int(shortest * long / short))
    return (shortest, other) if size[0] <= size[1] else (other, shortest)


def _placed(
    original: tuple[int, int],
    wanted: tuple[int, int],
    divisor: int,
    buckets: Sequence[tuple[int, int]],
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size of the picture inside its bucket, and the bucket."""
    for bucket in buckets:
        if any(side < 1 or side % divisor for side in bucket):
            raise ConfigError(f"size bucket {bucket}: expected two positive multiples of {divisor}")
    if not buckets:
        return wanted, (-(-wanted[0] // divisor) * divisor, -(-wanted[1] // divisor) * divisor)
    bucket = _bucket_for(wanted, buckets)
    fits = wanted[0] <= bucket[0] and wanted[1] <= bucket[1]
    return (wanted if fits else _fitted(original, bucket)), bucket


def _padded(
    resized: Rgb, bucket: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Float:
    """float32 [1,3,H,W], normalised; zeros to the right of and below the picture."""
    pixels = np.zeros((1, 3, *bucket), dtype=np.float32)
    content = pixels[0, :, : resized.shape[0], : resized.shape[1]]
    # Straight to where it belongs, a channel at a time: the picture is not moved twice.
    for channel, plane in enumerate(content):
        np.subtract(resized[:, :, channel], np.float32(mean[channel]), out=plane, dtype=np.float32)
        np.divide(plane, np.float32(std[channel]), out=plane, dtype=np.float32)
    return pixels


def _bucket_for(size: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The smallest bucket that holds the size, else the one that asks for the least shrinking."""
    holding = [b for b in buckets if b[0] >= size[0] and b[1] >= size[1]]
    if holding:
        return min(holding, key=lambda b: (b[0] * b[1], b))
    return max(buckets, key=lambda b: (min(b[0] / size[0], b[1] / size[1]), -b[0] * b[1], b))


def _fitted(original: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, int]:
    height, width = _scaled(original, min(bucket[0] / original[0], bucket[1] / original[1]))
    return min(height, bucket[0]), min(width, bucket[1])


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    # A very long picture would otherwise lose its short side altogether.
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def _resized(picture: Image.Image, width: int, height: int) -> Rgb:
    if picture.size == (width, height):
        return np.asarray(picture)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def _normalised(values: Float, mean: Sequence[float], std: Sequence[float]) -> Float:
    centred = values - np.asarray(mean, np.float32)
    return (centred / np.asarray(std, np.float32)).astype(np.float32, copy=False)
