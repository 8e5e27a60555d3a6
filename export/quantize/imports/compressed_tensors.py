"""Matrices as compressed-tensors stores them (`format` pack-quantized).

===================  ==========  ==============  ==================================================
tensor               type        shape           content
===================  ==========  ==============  ==================================================
`weight_packed`      int32       [N, ceil(K/p)]  codes + 2^(bits-1), p = 32/bits inputs a word
`weight_scale`       any float   [N, K/G]        w = (code - zero) * scale
`weight_shape`       int64       [2]             N, K
`weight_zero_point`  int32       [ceil(N/p),     zeros + 2^(bits-1), p outputs a word; missing where
                                 K/G]            weights are symmetric
===================  ==========  ==============  ==================================================

Source: the pack-quantized format of the compressed-tensors package.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from visionllm_edge.export.quantize.imports.packed_words import blocks_of, half, unpack_words
from visionllm_edge.export.quantize.imports.settings import Settings
from visionllm_edge.export.quantize.matrix import BlockQuantized
from visionllm_edge.runtime.errors import CheckpointError, ConfigError

__all__ = ["CompressedTensors"]


class CompressedTensors:
    """Reads the matrices of compressed-tensors; implements `Scheme`."""

    parts = ("weight_packed", "weight_scale", "weight_shape")
    optional = ("weight_zero_point", "weight_g_idx")

    def __init__(self, settings: Settings) -> None:
        """Check what kind of compression it is.

        Raises:
            ConfigError: another format, several groups of settings, or quantised activations.
        """
        settings.expect("format", "pack-quantized")
        groups = settings.section("config_groups")
        if len(groups) != 1:
            raise ConfigError(
                f"quantization_config.config_groups: expected one group, got {len(groups)}. "
                "Quantise all linears alike."
            )
        group = groups.section(groups.names()[0])
        group.expect("input_activations", None, default=None)
        weights = group.section("weights")
        self._bits = weights.expect("num_bits", 4, 8)
        weights.expect("type", "int", default="int")
        weights.expect("strategy", "group", "channel")
        self._symmetric = weights.expect("symmetric", True, False, default=True)

    def matrix(self, name: str, tensors: Mapping[str, Tensor]) -> BlockQuantized:
        """See `Scheme`."""
        if "weight_g_idx" in tensors and bool((tensors["weight_g_idx"] >= 0).any()):
            groups = tensors["weight_g_idx"]
            size = len(groups) // tensors["weight_scale"].shape[1]
            if not torch.equal(groups.long(), torch.arange(len(groups)) // size):
                raise CheckpointError(
                    f"matrix '{name}': expected groups of consecutive inputs, got a g_idx that "
                    "scatters them (actorder group). Quantise the model with actorder weight or "
                    "none."
                )
        rows, columns = (int(side) for side in tensors["weight_shape"])
        codes = unpack_words(tensors["weight_packed"], self._bits, axis=1)[:, :columns]
        scales = half(f"{name}.weight_scale", tensors["weight_scale"])
        zeros = None
        if not self._symmetric:
            if "weight_zero_point" not in tensors:
                raise CheckpointError(
                    f"matrix '{name}': expected a weight_zero_point, as its weights are not "
                    "symmetric, got none. The checkpoint is incomplete."
                )
            zeros = unpack_words(tensors["weight_zero_point"], self._bits, axis=0)[:rows]
        return blocks_of(name, codes, scales, zeros, self._bits)
