"""Ranges of activations from samples of them: the largest magnitude, or a smaller one.

A scale that reaches the rarest number is coarse for all others. Three choices are offered, and the
calibration takes the one whose quantised stage makes the smallest error:

==========  ====================================================================================
max         the largest magnitude seen
percentile  99.99 % of the numbers are inside
mse         the range that makes the smallest mean squared rounding and clipping error
==========  ====================================================================================
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.export.passes.quantize_dequantize import EIGHT_BITS, representable_scale
from visionllm_edge.runtime.ports import Array

__all__ = ["METHODS", "Samples"]

METHODS = ("max", "percentile", "mse")

_PERCENTILE = 99.99
_PER_RUN = 4096
_FRACTIONS = np.linspace(0.3, 1.0, 15, dtype=np.float32)


class Samples:
    """Magnitudes of one tensor over many runs.

    Attributes:
        largest: of all numbers seen, not of the sampled ones only.
    """

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.largest = 0.0
        self._taken: list[NDArray[np.float32]] = []

    def add(self, array: Array) -> None:
        """See the tensor of one run."""
        flat = np.abs(array, dtype=np.float32).ravel()
        self.largest = max(self.largest, float(flat.max(initial=0.0)))
        # A step that shares no factor with the last axis, so that every place in it is met.
        step = max(1, flat.size // _PER_RUN)
        while array.ndim and math.gcd(step, array.shape[-1]) != 1:
            step += 1
        self._taken.append(flat[::step].copy())

    def range(self, method: str, precision: str) -> float:
        """The largest magnitude to represent.

        Args:
            method: one of `METHODS`.
            precision: `int8` or `fp8`.
        """
        if method == "max" or not self._taken:
            return self.largest
        taken = np.concatenate(self._taken)
        if method == "percentile":
            inside = float(np.percentile(taken, _PERCENTILE))
            return inside if inside > 0 else self.largest
        errors = [self._error(taken, self.largest * float(f), precision) for f in _FRACTIONS]
        return self.largest * float(_FRACTIONS[int(np.argmin(errors))])

    @staticmethod
    def _error(taken: NDArray[np.float32], largest: float, precision: str) -> float:
        bits = EIGHT_BITS[precision]
        scale = representable_scale(largest, precision)
        scaled = np.minimum(taken / scale, np.float32(bits.largest))
        narrow = np.rint(scaled) if precision == "int8" else scaled
        back = narrow.astype(bits.dtype.numpy()).astype(np.float32) * scale
        return float(np.mean((back - taken) ** 2))
