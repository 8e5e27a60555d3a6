"""Matrices as AWQ's tools store them (`quant_method` awq, version gemm).

=========  =======  ============  =============================================================
tensor     type     shape         content
=========  =======  ============  =============================================================
`qweight`  int32    [K, N/8]      codes 0..15, eight outputs a word, in the order of `_ORDER`
`qzeros`   int32    [K/G, N/8]    zeros 0..15, packed alike
`scales`   float16  [K/G, N]      w = (code - zero) * scale
=========  =======  ============  =============================================================

Source: the layout of AutoAWQ's WQLinear_GEMM.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from visionllm_edge.export.quantize.imports.packed_words import (
    Codes,
    blocks_of,
    half,
    unpack_words,
)
from visionllm_edge.export.quantize.imports.settings import Settings
from visionllm_edge.export.quantize.matrix import BlockQuantized

__all__ = ["Awq"]

# Part i of a word, from the lowest bits up, is this one of its eight outputs.
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Awq:
    """Reads AWQ's matrices; implements `Scheme`."""

    parts = ("qweight", "qzeros", "scales")
    optional = ()

    def __init__(self, settings: Settings) -> None:
        """Check what kind of AWQ it is.

        Raises:
            ConfigError: another version or width.
        """
        settings.expect("bits", 4)
        settings.expect("version", "gemm", default="gemm")
        settings.expect("zero_point", True, default=True)

    def matrix(self, name: str, tensors: Mapping[str, Tensor]) -> BlockQuantized:
        """See `Scheme`."""
        codes, zeros = (
            _in_order(unpack_words(tensors[part], 4, axis=1)).T for part in ("qweight", "qzeros")
        )
        scales = half(f"{name}.scales", tensors["scales"]).T
        return blocks_of(name, codes, scales, zeros, 4)


def _in_order(packed: Codes) -> Codes:
    words = packed.reshape(len(packed), -1, 8)
    out = np.empty_like(words)
    out[..., _ORDER] = words
    return out.reshape(packed.shape)
