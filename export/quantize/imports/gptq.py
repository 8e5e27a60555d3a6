"""Matrices as GPTQ's tools store them (`quant_method` gptq, `checkpoint_format` gptq or gptq_v2).

=========  =======  ============  =============================================================
tensor     type     shape         content
=========  =======  ============  =============================================================
`qweight`  int32    [K/p, N]      codes, p = 32/bits inputs a word, the first in the lowest bits
`qzeros`   int32    [K/G, N/p]    zeros, p outputs a word; gptq stores them less one, v2 as they are
`scales`   float16  [K/G, N]      w = (code - zero) * scale
`g_idx`    int32    [K]           group of every input
=========  =======  ============  =============================================================

With `desc_act` the inputs of a group lie scattered. Blocks are consecutive inputs, so such a matrix
would need its activations gathered at every step: it is refused.

Source: the layouts of AutoGPTQ and GPTQModel.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from visionllm_edge.export.quantize.imports.packed_words import blocks_of, half, unpack_words
from visionllm_edge.export.quantize.imports.settings import Settings
from visionllm_edge.export.quantize.matrix import BlockQuantized
from visionllm_edge.runtime.errors import CheckpointError

__all__ = ["Gptq"]


class Gptq:
    """Reads GPTQ's matrices; implements `Scheme`."""

    parts = ("qweight", "qzeros", "scales")
    optional = ("g_idx",)

    def __init__(self, settings: Settings) -> None:
        """Check what kind of GPTQ it is.

        Raises:
            ConfigError: another format or width.
        """
        self._bits = settings.expect("bits", 4, 8)
        form = settings.expect("checkpoint_format", "gptq", "gptq_v2", default="gptq")
        self._less = 1 if form == "gptq" else 0

    def matrix(self, name: str, tensors: Mapping[str, Tensor]) -> BlockQuantized:
        """See `Scheme`."""
        codes = unpack_words(tensors["qweight"], self._bits, axis=0).T
        zeros = unpack_words(tensors["qzeros"], self._bits, axis=1).T + np.int16(self._less)
        scales = half(f"{name}.scales", tensors["scales"]).T
        if "g_idx" in tensors:
            groups = tensors["g_idx"].detach().numpy()
            size = codes.shape[1] // scales.shape[1]
            if not np.array_equal(groups, np.arange(len(groups)) // size):
                raise CheckpointError(
                    f"matrix '{name}': expected groups of consecutive inputs, got a g_idx that "
                    "scatters them (desc_act). Quantise the model with desc_act off, or compile "
                    "the model that it was quantised from."
                )
        return blocks_of(name, codes, scales, zeros, self._bits)
