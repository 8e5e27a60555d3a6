"""Noise from a seed: the same numbers on every machine.

Philox counts instead of remembering, and its stream is fixed by numpy's promise for bit generators.
numpy promises less for ``standard_normal``; a test holds the first numbers, so that a numpy that
changes them is noticed.
"""

from __future__ import annotations

import operator
import secrets

import numpy as np

from visionllm_edge.runtime.diffusion.scheduler import Latents
from visionllm_edge.runtime.errors import InputError

__all__ = ["NoiseSource", "check_seed"]

_SEEDS = 2**63


class NoiseSource:
    """Standard normal noise, float32, one array after the other.

    Args:
        seed: whole number, 0 to 2**63 - 1.
        shape: of every array.
    """

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        """Start the stream."""
        self._rng = np.random.Generator(np.random.Philox(seed))
        self._shape = shape

    def __call__(self) -> Latents:
        """The next array; the caller's own."""
        return self._rng.standard_normal(self._shape, dtype=np.float32)


def check_seed(seed: int | None) -> int:
    """The seed to use; None draws one, 32 bits wide so that it is easily written down.

    Raises:
        InputError: not a whole number, negative or too large.
    """
    if seed is None:
        return secrets.randbits(32)
    try:
        value = operator.index(seed)
    except TypeError:
        value = -1
    if isinstance(seed, bool) or not 0 <= value < _SEEDS:
        raise InputError(
            f"seed: expected a whole number from 0 to 2**63 - 1, got {seed!r}. Change the option."
        )
    return value
