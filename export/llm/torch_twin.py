"""The torch module with the weights that a quantised decoder stands for.

For models that fit into memory: the end-to-end check runs whole answers through it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from visionllm_edge.export.components.llm_decoder import Llama
from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.llm.decoder_graph import CacheScales
from visionllm_edge.export.llm.decoder_weights import (
    FINAL_NORM,
    BlockLinear,
    DecoderWeights,
    decoder_linears,
    layer_norms,
    matrix_shape,
)
from visionllm_edge.plugins.quantized_linear.reference import round_activations

__all__ = ["torch_twin"]


def torch_twin(
    weights: DecoderWeights,
    config: LlmConfig,
    *,
    rounded_activations: bool = False,
    cache_scales: CacheScales | None = None,
) -> Llama:
    """A module in float32, in eval mode.

    Args:
        weights: of the decoder, in blocks or not.
        config: sizes.
        rounded_activations: whether quantised linears round what they read to int8 per block, as
            the operator may.
        cache_scales: of a cache of int8, whose rounding keys and values then get; one pair for each
            layer.

    Returns:
        The module; its embedding table is empty, because the decoder starts behind it.
    """
    twin = Llama(config).eval().requires_grad_(False)
    twin.get_parameter("model.embed_tokens.weight").zero_()
    norms = [name for layer in range(config.num_hidden_layers) for name in layer_norms(layer)]
    for name in (*norms, FINAL_NORM):
        twin.get_parameter(name).copy_(torch.from_numpy(np.array(weights.norm(name))))
    for names in decoder_linears(config):
        linear = weights.linear(names)
        matrix = linear.load().dequantize() if isinstance(linear, BlockLinear) else linear.load().T
        start = 0
        for name in names:
            rows = matrix_shape(config, name)[0]
            part = torch.from_numpy(matrix[start : start + rows].copy())
            twin.get_parameter(name).copy_(part)
            start += rows
            if rounded_activations and isinstance(linear, BlockLinear):
                module = twin.get_submodule(name.removesuffix(".weight"))
                module.register_forward_pre_hook(_Rounded(linear.block_size))
    if cache_scales is not None:
        begin = _Start()
        twin.register_forward_pre_hook(begin)
        for layer, (keys, values) in zip(twin.layers(), cache_scales, strict=True):
            layer.self_attn.k_proj.register_forward_hook(_RoundedKeys(keys, twin, begin))
            layer.self_attn.v_proj.register_forward_hook(_RoundedValues(values))
    return twin


class _Rounded:
    """Rounds what a linear reads."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    def __call__(self, layer: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
        numbers, scales = round_activations(given[0].numpy(), self._block_size)
        blocks = numbers.reshape(*scales.shape, self._block_size) * scales[..., None]
        return torch.from_numpy(blocks.reshape(numbers.shape))


class _Start:
    """Remembers how many positions stand before a step."""

    def __init__(self) -> None:
        self.position = 0

    def __call__(self, llama: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.position = int(given[1])


class _RoundedValues:
    """Rounds what a projection [1,s,KV*Dh] gives to whole steps."""

    def __init__(self, scale: NDArray[np.float32]) -> None:
        self._steps = torch.from_numpy(scale)

    def __call__(self, layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        heads = made.reshape(*made.shape[:-1], *self._steps.shape)
        return self._round(heads).flatten(-2)

    def _round(self, rows: Tensor) -> Tensor:
        return torch.clamp(torch.round(rows / self._steps), -127, 127) * self._steps


class _RoundedKeys(_RoundedValues):
    """The same of keys as they stand in the cache, behind the rotation that is still to come."""

    def __init__(self, scale: NDArray[np.float32], llama: Llama, start: _Start) -> None:
        super().__init__(scale)
        self._cos, self._sin, self._start = llama.cos, llama.sin, start

    def _round(self, rows: Tensor) -> Tensor:
        first, count = self._start.position, rows.shape[1]
        cos, sin = (t[first : first + count, None] for t in (self._cos, self._sin))
        return _turned(super()._round(_turned(rows, cos, sin)), cos, -sin)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotation of x [1,s,KV,Dh] with cos, sin [s,1,Dh/2]; back with -sin."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
