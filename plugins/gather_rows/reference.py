"""Rows in another order in plain numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["gather_rows"]


def gather_rows(x: NDArray[np.float32], index: NDArray[np.int32]) -> NDArray[np.float32]:
    """Compute the operator.

    Args:
        x: [R, C].
        index: [N], each less than R; below 0 for a row of zeros.

    Returns:
        [N, C].
    """
    y = np.zeros((len(index), x.shape[1]), x.dtype)
    there = index >= 0
    y[there] = x[index[there]]
    return y
