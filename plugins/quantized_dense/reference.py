"""The quantised layer with bias and activation in plain numpy, sums and functions in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.plugins.quantized_linear.reference import quantized_linear

__all__ = ["activate", "quantized_dense"]

Wide = NDArray[np.float64]


def _gelu(z: Wide) -> Wide:
    from math import erf

    halves: Wide = np.vectorize(erf, otypes=[np.float64])(z / np.sqrt(2.0))
    return z * (1.0 + halves) / 2.0


def _quick_gelu(z: Wide) -> Wide:
    # exp of a number that is not positive, so that nothing overflows.
    fallen = np.exp(-1.702 * np.abs(z))
    out: Wide = z * np.where(z > 0, 1.0, fallen) / (1.0 + fallen)
    return out


def _relu(z: Wide) -> Wide:
    return np.maximum(z, 0.0)


_FUNCTIONS: Mapping[int, Callable[[Wide], Wide]] = MappingProxyType(
    {0: lambda z: z, 1: _gelu, 2: _quick_gelu, 3: _relu}
)


def activate(z: Wide, activation: int) -> Wide:
    """The activation of a number in the specification's table, of any shape."""
    return _FUNCTIONS[activation](z)


def quantized_dense(
    x: NDArray[np.float32],
    weight: NDArray[np.uint8],
    scales: NDArray[np.float16],
    bias: NDArray[np.float32],
    *,
    bits: int,
    block_size: int,
    accuracy_level: int = 1,
    activation: int = 0,
) -> NDArray[np.float32]:
    """Compute the operator.

    Args:
        x: [B, S, K].
        weight: [N, K/G, G*bits/8].
        scales: [N, K/G].
        bias: [N].
        bits: 4 or 8.
        block_size: G.
        accuracy_level: 1 takes x as it is, 4 rounds it first.
        activation: see spec.py.

    Returns:
        [B, S, N].
    """
    sums = quantized_linear(
        x, weight, scales, bits=bits, block_size=block_size, accuracy_level=accuracy_level
    )
    return activate(sums.astype(np.float64) + bias, activation).astype(np.float32)
