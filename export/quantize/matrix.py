"""A weight matrix in blocks of 4 or 8 bits: layout, rounding to nearest, and back.

K inputs, N outputs, G inputs per block. A block of one output's weights shares a scale s; its
weights are q*s with whole q in -8..7 (4 bits) or -127..127 (8 bits).

=============  =========  =============  ======================================================
array          type       shape          content
=============  =========  =============  ======================================================
`weight`       uint8      N, K/G, G*b/8  q + 2^(b-1); at 4 bits the low half of a byte is even k
`scales`       float16    N, K/G         s, above zero
`zero_offset`  float16    N, K/G         added to every weight of the block; None if there is none
=============  =========  =============  ======================================================

This is how ONNX Runtime's MatMulNBits stores a weight. A zero offset only comes with a checkpoint
that was quantised asymmetrically by someone else.

Scales are above zero: TensorRT asks for that. So the code -8, which has no counterpart on the other
side, is of use only where a block's largest weight is negative, or where clipping the largest
positive one a little costs less than a coarser step for all others. Which step is best is tried out
per block, with the scale as float16 stores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BITS",
    "BlockQuantized",
    "code_range",
    "pack",
    "quantize_blocks",
    "round_blocks",
    "unpack",
]

BITS = (4, 8)
DIVISORS = {4: (7.0, 7.5, 8.0, 8.5, 9.0), 8: (127.0,)}
"""What the largest magnitude of a block is divided by for the scales that are tried. With normal
weights in blocks of 32 this leaves 81 % of the squared error that 7 alone makes, a finer grid up
to 12 leaves 79 %."""

CLIPPING_DIVISORS = {4: (7.0, 7.5, 8.0, 8.5, 9.0, 10.0, 11.5, 13.0), 8: (127.0,)}
"""Those that are tried when the error is that of the output: down to nearly half of the largest."""

_MAX_SCALE = 65504.0
_MIN_SCALE = 2.0**-18  # float16 still tells neighbours apart by 2 %; zero would be refused
_CHUNK = 1 << 18  # weights worked on at once: all passes over them stay in the cache

Float = NDArray[np.float32]


@dataclass(frozen=True)
class BlockQuantized:
    """A matrix [N,K] in blocks along K.

    Attributes:
        weight: uint8 [N,K/G,G*bits/8].
        scales: float16 [N,K/G].
        bits: 4 or 8.
        block_size: G.
        zero_offset: float16 [N,K/G], or None.
    """

    weight: NDArray[np.uint8]
    scales: NDArray[np.float16]
    bits: int
    block_size: int
    zero_offset: NDArray[np.float16] | None = None

    def __post_init__(self) -> None:
        """Check the shapes."""
        assert self.bits in BITS, self.bits
        rows, blocks = self.scales.shape
        assert self.weight.shape == (rows, blocks, self.block_size * self.bits // 8)
        assert self.weight.dtype == np.uint8 and self.scales.dtype == np.float16
        if self.zero_offset is not None:
            assert self.zero_offset.shape == self.scales.shape
            assert self.zero_offset.dtype == np.float16

    @property
    def rows(self) -> int:
        """Outputs, N."""
        return int(self.scales.shape[0])

    @property
    def columns(self) -> int:
        """Inputs, K."""
        return int(self.scales.shape[1]) * self.block_size

    @property
    def nbytes(self) -> int:
        """Size of all arrays."""
        zeros = 0 if self.zero_offset is None else self.zero_offset.nbytes
        return self.weight.nbytes + self.scales.nbytes + zeros

    def dequantize(self) -> Float:
        """The weights that the arrays stand for, float32 [N,K]."""
        out = np.empty((*self.scales.shape, self.block_size), np.float32)
        for part in _chunks(self.rows, self.columns):
            codes = unpack(self.weight[part], self.bits).astype(np.float32)
            codes *= self.scales[part, :, None].astype(np.float32)
            if self.zero_offset is not None:
                codes += self.zero_offset[part, :, None].astype(np.float32)
            out[part] = codes
        return out.reshape(self.rows, self.columns)

    @classmethod
    def stack(cls, parts: Sequence[BlockQuantized]) -> BlockQuantized:
        """One matrix whose outputs are those of the parts, one after the other.

        Args:
            parts: of the same bits, block size and number of inputs.
        """
        first = parts[0]
        if len(parts) == 1:
            return first
        kinds = {(part.bits, part.block_size, part.columns) for part in parts}
        assert len(kinds) == 1, f"parts of different kinds cannot be stacked: {sorted(kinds)}"
        zeros = None
        if any(part.zero_offset is not None for part in parts):
            zeros = np.concatenate(
                [
                    np.zeros_like(part.scales) if part.zero_offset is None else part.zero_offset
                    for part in parts
                ]
            )
        return cls(
            np.concatenate([part.weight for part in parts]),
            np.concatenate([part.scales for part in parts]),
            first.bits,
            first.block_size,
            zeros,
        )


def quantize_blocks(
    weight: Float, bits: int, block_size: int, products: Float | None = None
) -> BlockQuantized:
    """Round a matrix to the nearest codes.

    Args:
        weight: [N,K], K a multiple of `block_size`.
        bits: 4 or 8.
        block_size: G.
        products: [K/G,G,G], mean of x x^T over what the matrix reads, per block. With it, the step
            of a block is the one with the smallest error of the block's output, and may be so small
            that the largest weights are clipped; without it, with the smallest error of its
            weights.
    """
    rows, columns = weight.shape
    assert columns % block_size == 0, f"{columns} inputs are no whole blocks of {block_size}"
    packed = np.empty((rows, columns // block_size, block_size * bits // 8), np.uint8)
    scales = np.empty(packed.shape[:2], np.float16)
    for part in _chunks(rows, columns):
        blocks = weight[part].reshape(-1, columns // block_size, block_size)
        codes, scales[part] = round_blocks(blocks.astype(np.float32, copy=False), bits, products)
        packed[part] = pack(codes, bits)
    return BlockQuantized(packed, scales, bits, block_size)


def round_blocks(
    blocks: Float, bits: int, products: Float | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Codes and scales of blocks [N,K/G,G], by the smallest squared error per block.

    Args:
        blocks: of weights.
        bits: 4 or 8.
        products: [K/G,G,G], see `quantize_blocks`.

    Returns:
        codes int8 of the same shape; scales float16 without the last axis, all above zero.
    """
    largest = np.maximum(blocks.max(axis=-1), -blocks.min(axis=-1))
    divisors = DIVISORS[bits] if products is None else CLIPPING_DIVISORS[bits]
    best: tuple[Float, Float, NDArray[np.float16]] | None = None
    for divisor in divisors:
        scales = half_scales(largest / np.float32(divisor))
        codes = _codes(blocks, scales, bits)
        if len(divisors) == 1:
            return codes.astype(np.int8), scales
        difference = codes * scales[..., None].astype(np.float32)
        difference -= blocks
        error = _error(difference, products)
        if best is None:
            best = error, codes, scales
            continue
        better = error < best[0]
        np.copyto(best[0], error, where=better)
        np.copyto(best[1], codes, where=better[..., None])
        np.copyto(best[2], scales, where=better)
    assert best is not None, "there are divisors"
    return best[1].astype(np.int8), best[2]


def _error(difference: Float, products: Float | None) -> Float:
    """Squared error of every block [N,K/G]: of its weights, or of what it adds to the output."""
    if products is None:
        return np.asarray(np.einsum("nbk,nbk->nb", difference, difference))
    by_block = difference.transpose(1, 0, 2)
    weighted = np.matmul(by_block, products)
    return np.asarray(np.einsum("bnk,bnk->nb", weighted, by_block))


def half_scales(scales: Float) -> NDArray[np.float16]:
    """Scales as they are stored: float16, large enough to keep their digits, never zero."""
    return np.clip(scales, _MIN_SCALE, _MAX_SCALE).astype(np.float16)


def _codes(blocks: Float, scales: NDArray[np.float16], bits: int) -> Float:
    """Nearest codes, as floats."""
    codes = blocks * (np.float32(1.0) / scales[..., None].astype(np.float32))
    np.rint(codes, out=codes)
    return np.clip(codes, *code_range(bits), out=codes)


def code_range(bits: int) -> tuple[float, float]:
    """Smallest and largest code."""
    return (-8.0, 7.0) if bits == 4 else (-127.0, 127.0)


def pack(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Codes [...,G] as stored bytes [...,G*bits/8]."""
    if bits == 8:
        return codes.view(np.uint8) ^ np.uint8(128)
    stored = (codes + np.int8(8)).view(np.uint8)
    return stored[..., 0::2] | (stored[..., 1::2] << np.uint8(4))


def unpack(stored: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """Stored bytes as codes; the inverse of `pack`."""
    if bits == 8:
        return (stored ^ np.uint8(128)).view(np.int8)
    codes = np.empty((*stored.shape[:-1], 2 * stored.shape[-1]), np.int8)
    codes[..., 0::2] = stored & 15
    codes[..., 1::2] = stored >> 4
    codes -= np.int8(8)
    return codes


def _chunks(rows: int, columns: int) -> list[slice]:
    step = max(1, _CHUNK // max(columns, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
