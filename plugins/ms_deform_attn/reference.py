"""Multi-scale deformable attention in plain numpy: the meaning, one corner at a time.

For head m and query q: sum over levels l and points p of
`weight[q, m, l, p] * bilinear(value_l[m], location[q, m, l, p])`. A location (x, y) counts 0..1
over the level, pixel centres stand at (i + 0.5) / size, and everything outside the level is zero.

Source: "Deformable DETR" (Zhu et al., 2020), equations 2 and 3, for the definition.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["ms_deform_attn"]


def ms_deform_attn(
    value: NDArray[np.floating],
    spatial_shapes: NDArray[np.integer],
    level_start_index: NDArray[np.integer],
    sampling_locations: NDArray[np.floating],
    attention_weights: NDArray[np.floating],
) -> NDArray[np.floating]:
    """Compute the operator; sums run in float64, the result has the dtype of `value`.

    Args:
        value: [N, S, M, D].
        spatial_shapes: [L, 2], (height, width).
        level_start_index: [L].
        sampling_locations: [N, Lq, M, L, P, 2], (x, y).
        attention_weights: [N, Lq, M, L, P].

    Returns:
        [N, Lq, M, D].
    """
    batch, _, heads, depth = value.shape
    queries = sampling_locations.shape[1]
    wide = value.astype(np.float64)
    total = np.zeros((batch, queries, heads, depth), dtype=np.float64)
    for level, (height, width) in enumerate(np.asarray(spatial_shapes, dtype=np.int64)):
        start = int(level_start_index[level])
        plane = wide[:, start : start + height * width].reshape(batch, height, width, heads, depth)
        # Pixel coordinates of the samples, [N, Lq, M, P]; pixel centres are whole numbers.
        x = sampling_locations[:, :, :, level, :, 0].astype(np.float64) * width - 0.5
        y = sampling_locations[:, :, :, level, :, 1].astype(np.float64) * height - 0.5
        left, top = np.floor(x), np.floor(y)
        for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
            for column, column_weight in ((left, left + 1 - x), (left + 1, x - left)):
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                rows = np.where(inside, row, 0).astype(np.int64)
                columns = np.where(inside, column, 0).astype(np.int64)
                n = np.arange(batch)[:, None, None, None]
                m = np.arange(heads)[None, None, :, None]
                corner = plane[n, rows, columns, m]  # [N, Lq, M, P, D]
                share = attention_weights[:, :, :, level].astype(np.float64) * inside
                share = share * row_weight * column_weight
                total += (corner * share[..., None]).sum(axis=3)
    return total.astype(value.dtype)
