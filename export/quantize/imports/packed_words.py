"""Numbers packed into int32 words, and blocks made of what other quantisers store."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visionllm_edge.export.quantize.matrix import BlockQuantized, pack
from visionllm_edge.export.quantize.policy import block_for
from visionllm_edge.runtime.errors import CheckpointError

__all__ = ["blocks_of", "half", "unpack_words"]

_LARGEST_BLOCK = 128
_NO_WEIGHT = 2.0**-18  # step of a block whose own is zero: all its weights are zero

Codes = NDArray[np.int16]


def unpack_words(words: Tensor, bits: int, axis: int) -> Codes:
    """Unsigned numbers out of int32 words [A,B], the lowest bits first, along an axis.

    Returns:
        int16, 32/bits times as long along the axis.
    """
    stored = words.detach().to(torch.int32).contiguous().numpy().view(np.uint32)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    if axis == 1:
        parts = (stored[:, :, None] >> shifts) & np.uint32(2**bits - 1)
    else:
        parts = (stored[:, None, :] >> shifts[None, :, None]) & np.uint32(2**bits - 1)
    shape = list(stored.shape)
    shape[axis] *= len(shifts)
    return parts.reshape(shape).astype(np.int16)


def half(name: str, values: Tensor) -> NDArray[np.float16]:
    """Scales in float16.

    Raises:
        CheckpointError: one of them is too large for it, or so small that it loses digits.
    """
    wide = values.detach().to(torch.float32).numpy()
    out = wide.astype(np.float16)
    if not (np.abs(out.astype(np.float32) - wide) <= 2.0**-11 * np.abs(wide)).all():
        raise CheckpointError(
            f"tensor '{name}': expected scales that float16 can hold, got some of magnitude "
            f"{np.abs(wide[wide != 0]).min():.2g} to {np.abs(wide).max():.2g}. Compile the "
            "checkpoint that it was quantised from."
        )
    return out


def blocks_of(
    name: str, codes: Codes, scales: NDArray[np.float16], zeros: Codes | None, bits: int
) -> BlockQuantized:
    """A matrix whose weights are (code - zero) times scale.

    Groups of more than 128 inputs, and whole channels, become several blocks of one scale.

    Args:
        name: of the matrix, for messages.
        codes: [N,K], unsigned.
        scales: [N,K/G].
        zeros: [N,K/G], unsigned; None where all are the middle of the range.
        bits: of the codes.

    Raises:
        CheckpointError: shapes that do not fit, or groups that are no blocks.
    """
    rows, columns = codes.shape
    groups = scales.shape[1]
    if scales.shape[0] != rows or columns % groups:
        raise CheckpointError(
            f"matrix '{name}': expected a scale for each group of its {columns} inputs and each of "
            f"its {rows} outputs, got scales {scales.shape}. The checkpoint is damaged."
        )
    size = columns // groups
    block = size if size <= _LARGEST_BLOCK else block_for(size, _LARGEST_BLOCK)
    if block is None or block % 16:
        raise CheckpointError(
            f"matrix '{name}': expected groups of a multiple of 16 inputs, got {size}. Compile the "
            "checkpoint that it was quantised from."
        )
    middle = 2 ** (bits - 1)
    signed = (codes - middle).reshape(rows, groups, size)
    dead = scales == 0
    if dead.any():
        signed[dead] = 0
        scales = np.where(dead, np.float16(_NO_WEIGHT), scales)
    offset = None
    if zeros is not None and (zeros != middle).any():
        exact = scales.astype(np.float32) * (middle - zeros).astype(np.float32)
        exact[dead] = 0
        offset = np.repeat(exact.astype(np.float16), size // block, axis=1)
    return BlockQuantized(
        pack(signed.astype(np.int8).reshape(rows, columns // block, block), bits),
        np.repeat(scales, size // block, axis=1),
        bits,
        block,
        offset,
    )
