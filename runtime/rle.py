"""Run-length encoding of masks in the compressed text form of the COCO data set.

Written here so that a device can export COCO results without pycocotools. It only encodes; reading
the text back is the evaluation's business.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["compress_counts", "encode_mask", "run_lengths"]


def encode_mask(mask: npt.NDArray[np.bool_]) -> dict[str, list[int] | str]:
    """COCO object ``{"size": [height, width], "counts": text}`` of one mask.

    Args:
        mask: boolean mask [H,W]; any memory layout.

    Source: the text form is the one of the COCO API (cocodataset/cocoapi, ``maskApi.c``).
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise TypeError(f"expected a bool mask [H,W], got {mask.dtype} {list(mask.shape)}")
    height, width = mask.shape
    return {"size": [height, width], "counts": compress_counts(run_lengths(mask))}


def run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs down the columns, background first (so the first may be 0)."""
    pixels = mask.ravel(order="F")
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    lengths = np.diff(np.concatenate(([0], edges, [pixels.size])))
    counts = [int(n) for n in lengths]
    return [0, *counts] if pixels.size and pixels[0] else counts


def compress_counts(counts: list[int]) -> str:
    """Text of the run lengths: from the fourth on as differences, five bits to a character."""
    out: list[str] = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            # The fifth bit is the sign, so a number ends only where the rest repeats it.
            more = value != (-1 if bits & 0x10 else 0)
            out.append(chr((bits | 0x20 if more else bits) + 48))
    return "".join(out)
