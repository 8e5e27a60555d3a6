"""Bilinear resizing with half-pixel centres and no smoothing, in numpy.

It is what OpenCV calls INTER_LINEAR and PyTorch calls bilinear with ``align_corners=False``: pixel
i of the output reads position (i + 0.5) * size_in / size_out - 0.5 of the input, held inside the
picture. Pillow's bilinear filter smooths when it shrinks and gives other numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Taps", "bilinear_matrix", "resize_bilinear", "resize_by_taps", "touched_by_bilinear"]

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
    return np.rint(mixed, out=mixed).astype(np.uint8)


def bilinear_matrix(size_in: int, size_out: int) -> Float:
    """The resizing of one axis as a matrix [size_out,size_in]; rows sum to 1."""
    first, second, weights = _taps(size_in, size_out)
    matrix = np.zeros((size_out, size_in), dtype=np.float32)
    line = np.arange(size_out)
    # At the borders both taps are the same pixel, so the second must be added, not assigned.
    matrix[line, first] = 1.0 - weights
    matrix[line, second] += weights
    return matrix


@dataclass(frozen=True)
class Taps:
    """One axis of a resizing: what each output position reads, and how much of it.

    Attributes:
        positions: input positions [T,n], T for each of n outputs.
        weights: of the same shape, float32.
    """

    positions: npt.NDArray[np.intp]
    weights: Float

    @classmethod
    def bilinear(cls, size_in: int, size_out: int) -> Taps:
        """Of :func:`bilinear_matrix`."""
        first, second, weights = _taps(size_in, size_out)
        return cls(np.stack([first, second]), np.stack([1 - weights, weights]))

    def then(self, later: Taps) -> Taps:
        """Both resizings in one; the later one reads what this one gives."""
        outputs = later.positions.shape[1]
        positions = self.positions[:, later.positions].reshape(-1, outputs)
        weights = (self.weights[:, later.positions] * later.weights).reshape(-1, outputs)
        used = weights.any(axis=1)
        return Taps(positions[used], weights[used])


def resize_by_taps(values: Float, rows: Taps, columns: Taps) -> Float:
    """Resize [h,w] to [H,W]: as the two matrices would, without a matrix product.

    A product would wake the threads of NumPy's BLAS, which go on spinning afterwards and take the
    cores from the stage that runs next: on two cores that doubled the time of a segmentation.
    """
    wide = np.zeros((len(values), columns.positions.shape[1]), np.float32)
    for position, weight in zip(columns.positions, columns.weights, strict=True):
        wide += values[:, position] * weight
    out = np.zeros((rows.positions.shape[1], wide.shape[1]), np.float32)
    part = np.empty_like(out)
    for position, weight in zip(rows.positions, rows.weights, strict=True):
        np.take(wide, position, axis=0, out=part, mode="clip")
        part *= weight[:, None]
        out += part
    return out


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
    """``first + (second - first) * weight``; the arrays are this function's to overwrite."""
    start = first.astype(np.float32, copy=False)
    mixed = second.astype(np.float32, copy=False)
    mixed -= start
    mixed *= weight
    mixed += start
    return mixed
