"""The torch module with the weights that a quantised decoder stands for.

For models that fit into memory: the end-to-end check runs whole answers through it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from visionllm_edge.export.components.llm_decoder import Llama
from visionllm_edge.export.config import LlmConfig
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
    weights: DecoderWeights, config: LlmConfig, *, rounded_activations: bool = False
) -> Llama:
    """A module in float32, in eval mode.

    Args:
        weights: of the decoder, in blocks or not.
        config: sizes.
        rounded_activations: whether quantised linears round what they read to int8 per block, as
            the operator may.

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
    return twin


class _Rounded:
    """Rounds what a linear reads."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    def __call__(self, layer: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
        numbers, scales = round_activations(given[0].numpy(), self._block_size)
        blocks = numbers.reshape(*scales.shape, self._block_size) * scales[..., None]
        return torch.from_numpy(blocks.reshape(numbers.shape))
