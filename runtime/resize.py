"""Bilinear resizing with half-pixel centres and no smoothing, in numpy.

It is what OpenCV calls INTER_LINEAR and PyTorch calls bilinear with ``align_corners=False``: pixel
i of the output reads position (i + 0.5) * size_in / size_out - 0.5 of the input, held inside the
picture. Pillow's bilinear filter smooths when it shrinks and gives other numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["bilinear_matrix", "resize_bilinear", "touched_by_bilinear"]

Float = npt.NDArray[np.float32]


def resize_bilinear(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize an image [H,W,C] to [height,width,C].

    The result is rounded to whole grey levels, because the reference resizes 8-bit images. OpenCV
    does it with 11-bit weights and may differ by one level.
    """
    rows, next_rows, row_weights = _taps(image.shape[0], height)
    columns, next_columns, column_weights = _taps(image.shape[1], width)
    upper = _mixed(image[rows], image[next_rows], row_weights[:, None, None])
    mixed = _mixed(upper[:, columns], upper[:, next_columns], column_weights[:, None])
    return np.rint(mixed).astype(np.uint8)


def bilinear_matrix(size_in: int, size_out: int) -> Float:
    """The resizing of one axis as a matrix [size_out,size_in]; rows sum to 1."""
    first, second, weights = _taps(size_in, size_out)
    matrix = np.zeros((size_out, size_in), dtype=np.float32)
    line = np.arange(size_out)
    # At the borders both taps are the same pixel, so the second must be added, not assigned.
    matrix[line, first] = 1.0 - weights
    matrix[line, second] += weights
    return matrix


def touched_by_bilinear(
    mask: npt.NDArray[np.bool_], height: int, width: int
) -> npt.NDArray[np.bool_]:
    """Where a 0/1 mask [H,W], resized to [height,width] and not rounded, is above zero."""
    rows, next_rows, row_weights = _taps(mask.shape[0], height)
    columns, next_columns, column_weights = _taps(mask.shape[1], width)
    tall = mask[rows] | (mask[next_rows] & (row_weights > 0)[:, None])
    touched: npt.NDArray[np.bool_] = tall[:, columns] | (
        tall[:, next_columns] & (column_weights > 0)
    )
    return touched


def _taps(size_in: int, size_out: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Float]:
    """Per output position: the two input positions and the weight of the second."""
    # float64: a float32 position is off by 1e-3 of a pixel at 20,000 pixels.
    position = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    position = np.clip(position, 0.0, size_in - 1.0)
    first = np.floor(position).astype(np.intp)
    second = np.minimum(first + 1, size_in - 1)
    return first, second, (position - first).astype(np.float32)


def _mixed(
    first: npt.NDArray[np.uint8] | Float, second: npt.NDArray[np.uint8] | Float, weight: Float
) -> Float:
    start = first.astype(np.float32)
    return start + (second.astype(np.float32) - start) * weight
