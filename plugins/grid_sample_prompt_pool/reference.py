"""Prompt pooling in plain numpy: the meaning, one corner at a time, and its exact fold.

`grid_sample_prompt_pool` samples the map at every foreground pixel and averages. Bilinear sampling
is linear in the map, so the average is one weight per cell: `fold_weights` gives those weights, and
`folded` multiplies them with the map. Both forms are the operator; they differ by rounding only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["fold_weights", "folded", "grid_sample_prompt_pool"]


def grid_sample_prompt_pool(
    features: NDArray[np.floating],
    masks: NDArray[np.floating],
    region_image: NDArray[np.integer],
) -> NDArray[np.floating]:
    """Sample at every foreground pixel, then average; sums run in float64.

    Args:
        features: [N, Gh, Gw, C].
        masks: [R, H, W]; not zero is foreground.
        region_image: [R], the image of every region; outside 0 .. N-1 gives zeros.

    Returns:
        [R, C] in the dtype of `features`.
    """
    images, grid_height, grid_width, channels = features.shape
    regions, height, width = masks.shape
    pooled = np.zeros((regions, channels), dtype=np.float64)
    for region, image in enumerate(region_image):
        rows, columns = np.nonzero(masks[region])
        if not 0 <= image < images or rows.size == 0:
            continue
        plane = features[image].astype(np.float64)
        # Cell coordinates of the points; cell centres are whole numbers.
        y = rows / height * grid_height - 0.5
        x = columns / width * grid_width - 0.5
        top, left = np.floor(y), np.floor(x)
        for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
            for column, column_weight in ((left, left + 1 - x), (left + 1, x - left)):
                inside = (row >= 0) & (row < grid_height) & (column >= 0) & (column < grid_width)
                corner = plane[row[inside].astype(np.int64), column[inside].astype(np.int64)]
                share = row_weight[inside] * column_weight[inside]
                pooled[region] += share @ corner
        pooled[region] /= rows.size
    return pooled.astype(features.dtype)


def _tent(pixels: int, cells: int) -> NDArray[np.float64]:
    """[pixels, cells]: how much a point at pixel p takes from cell c along one axis."""
    point = np.arange(pixels)[:, None] / pixels * cells - 0.5
    return np.maximum(0.0, 1.0 - np.abs(point - np.arange(cells)[None, :]))


def fold_weights(
    masks: NDArray[np.floating], grid_height: int, grid_width: int
) -> NDArray[np.float64]:
    """The weight of every cell, [R, Gh, Gw]; zeros for an empty mask."""
    _, height, width = masks.shape
    foreground = (masks != 0).astype(np.float64)
    count = np.maximum(foreground.sum(axis=(1, 2), keepdims=True), 1.0)
    weights: NDArray[np.float64] = (
        _tent(height, grid_height).T @ foreground @ _tent(width, grid_width) / count
    )
    return weights


def folded(
    features: NDArray[np.floating],
    masks: NDArray[np.floating],
    region_image: NDArray[np.integer],
) -> NDArray[np.floating]:
    """The operator as one weighted sum over cells; arguments as `grid_sample_prompt_pool`."""
    images, grid_height, grid_width, channels = features.shape
    weights = fold_weights(masks, grid_height, grid_width)
    pooled = np.zeros((masks.shape[0], channels), dtype=np.float64)
    for region, image in enumerate(region_image):
        if 0 <= image < images:
            pooled[region] = np.einsum("yx,yxc->c", weights[region], features[image], dtype=float)
    return pooled.astype(features.dtype)
