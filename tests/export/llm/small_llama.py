"""A LLaMA of a few thousand random weights: as a torch module and as a source of weights."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from visionllm_edge.export.components.llm_decoder import Llama
from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.llm.decoder_weights import BlockLinear, DenseWeights, StateDict
from visionllm_edge.export.llm.streamed import DecoderCase
from visionllm_edge.export.quantize.matrix import BlockQuantized, quantize_blocks

__all__ = ["CONFIG", "BlockWeights", "decoder_case", "dequantized_llama", "random_llama"]

CONFIG = LlmConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    max_position_embeddings=64,
)


def random_llama(config: LlmConfig = CONFIG, seed: int = 0) -> Llama:
    """In eval mode, float32."""
    torch.manual_seed(seed)
    llama = Llama(config).eval().requires_grad_(False)
    for name, tensor in llama.state_dict().items():
        if "norm" in name:
            tensor.uniform_(0.5, 1.5)
    return llama


def decoder_case(
    rows: int,
    prefix: int,
    capacity: int,
    *,
    hidden: tuple[int, ...] | None = None,
    scored: tuple[int, ...] = (0,),
    width: int = CONFIG.hidden_size,
    seed: int = 0,
) -> DecoderCase:
    """Normal rows; the last one's logits by default."""
    rng = np.random.default_rng(seed)
    return DecoderCase(
        rng.standard_normal((rows, width)).astype(np.float32),
        rng.standard_normal((prefix, width)).astype(np.float32),
        capacity,
        (rows - 1,) if hidden is None else hidden,
        scored,
    )


@dataclass
class BlockWeights:
    """Every linear of a module in blocks; notes how many loaded matrices are alive at once."""

    llama: Llama
    bits: int = 4
    block_size: int = 32
    asymmetric: bool = False
    most_alive: int = 0
    _alive: list[weakref.ref[NDArray[np.uint8]]] = field(default_factory=list)

    def norm(self, name: str) -> NDArray[np.float32]:
        array: NDArray[np.float32] = self.llama.state_dict()[name].numpy()
        return array

    def linear(self, names: tuple[str, ...]) -> BlockLinear:
        parts = [self.llama.state_dict()[name] for name in names]
        rows, columns = sum(len(part) for part in parts), parts[0].shape[1]

        def load() -> BlockQuantized:
            gc.collect()
            self._alive = [ref for ref in self._alive if ref() is not None]
            made = BlockQuantized.stack([self._quantized(part.numpy()) for part in parts])
            self._alive.append(weakref.ref(made.weight))
            self.most_alive = max(self.most_alive, len(self._alive))
            return made

        return BlockLinear(rows, columns, self.bits, self.block_size, self.asymmetric, load)

    def _quantized(self, weight: NDArray[np.float32]) -> BlockQuantized:
        blocks = quantize_blocks(weight, self.bits, self.block_size)
        if not self.asymmetric:
            return blocks
        return replace(blocks, zero_offset=(blocks.scales * np.float16(0.5)).astype(np.float16))


def dequantized_llama(weights: BlockWeights) -> Llama:
    """The module with the weights that the blocks stand for."""
    llama = random_llama(weights.llama.config)
    state = dict(weights.llama.state_dict())
    for name, tensor in state.items():
        if name.endswith(("_proj.weight", "lm_head.weight")):
            state[name] = torch.from_numpy(weights._quantized(tensor.numpy()).dequantize())
    llama.load_state_dict(state)
    return llama


def dense_weights(llama: Llama) -> DenseWeights:
    return DenseWeights(StateDict(llama.config, llama.state_dict()))
