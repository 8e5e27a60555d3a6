"""The normalisation in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["row_normalization"]


def row_normalization(
    x: NDArray[np.floating],
    scale: NDArray[np.floating],
    bias: NDArray[np.floating],
    *,
    epsilon: float,
) -> NDArray[np.floating]:
    """Normalise every row of [N,C,L]; all in float64.

    Args:
        x: [N,C,L].
        scale: [C].
        bias: [C].
        epsilon: added to the variance.

    Returns:
        [N,C,L] in the type of the input.
    """
    wide: NDArray[np.float64] = x.astype(np.float64)
    away = wide - wide.mean(axis=2, keepdims=True)
    variance = (away * away).mean(axis=2, keepdims=True)
    unit = away / np.sqrt(variance + epsilon)
    result: NDArray[np.float64] = unit * scale[:, None] + bias[:, None]
    return result.astype(x.dtype)
