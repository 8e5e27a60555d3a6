"""The block-quantised linear layer in plain numpy: the meaning, sums in float64.

Also the two halves of it that others need by themselves: what the stored bytes mean, and how
activations are rounded at accuracy level 4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["dequantize", "quantized_linear", "round_activations", "unpack"]


def unpack(weight: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """Read the whole numbers q out of the stored bytes.

    Args:
        weight: [N, K/G, G*bits/8].
        bits: 4 or 8.

    Returns:
        [N, K], -8..7 or -128..127.
    """
    stored = weight
    if bits == 4:
        stored = np.stack([weight & 0xF, weight >> 4], axis=-1)
    return (stored.reshape(weight.shape[0], -1).astype(np.int16) - (1 << bits - 1)).astype(np.int8)


def dequantize(
    weight: NDArray[np.uint8], scales: NDArray[np.float16], bits: int
) -> NDArray[np.float64]:
    """The weights as numbers, [N, K]: q times the scale of its block.

    Args:
        weight: [N, K/G, G*bits/8].
        scales: [N, K/G].
        bits: 4 or 8.
    """
    numbers = unpack(weight, bits).reshape(*scales.shape, -1)
    return (numbers * scales.astype(np.float64)[..., None]).reshape(weight.shape[0], -1)


def round_activations(
    x: NDArray[np.float32], block_size: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round to int8, one scale per row and block: the largest magnitude becomes 127.

    Every step is in float32, so that a kernel can get the same whole numbers.

    Args:
        x: [..., K].
        block_size: G, a divisor of K.

    Returns:
        numbers [..., K] and scales [..., K/G]; x is about their product.
    """
    blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, block_size)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    # A block of zeros, or of numbers so small that 127 / largest is infinite, becomes zeros.
    inverse = np.float32(127) / np.maximum(largest, np.float32(1e-30))
    inverse[largest < np.float32(1e-30)] = 0
    numbers = np.rint(blocks * inverse).astype(np.int8)
    scales = largest[..., 0] * np.float32(1 / 127)
    return numbers.reshape(x.shape), scales.astype(np.float32)


def quantized_linear(
    x: NDArray[np.float32],
    weight: NDArray[np.uint8],
    scales: NDArray[np.float16],
    *,
    bits: int,
    block_size: int,
    accuracy_level: int = 1,
) -> NDArray[np.float32]:
    """Compute the operator.

    Args:
        x: [B, S, K].
        weight: [N, K/G, G*bits/8].
        scales: [N, K/G].
        bits: 4 or 8.
        block_size: G.
        accuracy_level: 1 takes x as it is, 4 rounds it first (`round_activations`).

    Returns:
        [B, S, N].
    """
    wide = x.astype(np.float64)
    if accuracy_level == 4:
        numbers, x_scales = round_activations(x, block_size)
        blocks = numbers.reshape(*x_scales.shape, block_size).astype(np.float64)
        wide = (blocks * x_scales.astype(np.float64)[..., None]).reshape(x.shape)
    y: NDArray[np.float32] = (wide @ dequantize(weight, scales, bits).T).astype(np.float32)
    return y
