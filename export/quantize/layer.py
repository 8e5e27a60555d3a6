"""One layer of the decoder as a dictionary of matrices: read, run on whole sequences, watched.

The sequences are causal and start at position 0; there is no cache. Whoever watches gets what each
of the four linears (`qkv`, `o`, `gate_up`, `down`) reads. What `o` and `down` give is added to the
stream and later divided by its size in a norm, so their rows are divided by that size: a few rows,
the first token's above all, are a thousand times larger than the others, and an error in them would
count a million times as much while it matters no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.llm_decoder import rope_tables
from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.llm.decoder_weights import layer_linears, layer_norms

if TYPE_CHECKING:
    from visionllm_edge.export.llm.weights import LlmWeights

__all__ = ["LINEARS", "NORMS", "LayerRunner", "layer_names", "read_layer"]

LINEARS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""Linears of a layer -> the matrices they stack."""

NORMS = ("input_layernorm", "post_attention_layernorm")

Watch = Callable[[str, Tensor], None]
Matrices = dict[str, Tensor]


def layer_names(layer: int) -> dict[str, str]:
    """Short names (``q_proj``) of a layer's tensors -> their official names."""
    matrices = [name for stack in layer_linears(layer).values() for name in stack]
    return {name.split(".")[-2]: name for name in (*matrices, *layer_norms(layer))}


def read_layer(weights: LlmWeights, layer: int) -> Matrices:
    """All tensors of a layer in float32, by short name; copies that may be changed."""
    names = layer_names(layer)
    return {
        short: weights.tensor(name).detach().to(torch.float32, copy=True)
        for short, name in names.items()
    }


class LayerRunner:
    """Runs layers on sequences.

    Args:
        config: sizes.
        length: of the longest sequence.
    """

    def __init__(self, config: LlmConfig, length: int) -> None:
        """Make the rotary tables."""
        self._config = config
        cos, sin = rope_tables(config)
        self._cos, self._sin = cos[:length], sin[:length]

    def run(self, layer: Matrices, x: Tensor, watch: Watch | None = None) -> Tensor:
        """What the layer makes of one sequence.

        Args:
            layer: by short name.
            x: hidden states [T,D], float32.
            watch: is given the name of each linear and what it reads, [T,K]; see the module for the
                size of the rows.
        """
        with torch.no_grad():
            return self._run(layer, x, watch or (lambda name, rows: None))

    def _run(self, layer: Mapping[str, Tensor], x: Tensor, watch: Watch) -> Tensor:
        rows = self._norm(x, layer["input_layernorm"])
        watch("qkv", rows)
        q, k, v = (self._heads(rows @ layer[name].T) for name in LINEARS["qkv"])
        attended = F.scaled_dot_product_attention(
            self._rotate(q),
            self._rotate(k),
            v,
            is_causal=True,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        rows = attended[0].transpose(0, 1).reshape(len(x), -1)
        x = x + rows @ layer["o_proj"].T
        watch("o", rows / _size(x))
        rows = self._norm(x, layer["post_attention_layernorm"])
        watch("gate_up", rows)
        rows = F.silu(rows @ layer["gate_proj"].T) * (rows @ layer["up_proj"].T)
        x = x + rows @ layer["down_proj"].T
        watch("down", rows / _size(x))
        return x

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        mean = x.pow(2).mean(dim=-1, keepdim=True)
        return x * torch.rsqrt(mean + self._config.rms_norm_eps) * weight

    def _heads(self, rows: Tensor) -> Tensor:
        """[T,H*Dh] -> [1,H,T,Dh]."""
        return rows.view(1, len(rows), -1, self._config.head_dim).transpose(1, 2)

    def _rotate(self, x: Tensor) -> Tensor:
        cos, sin = self._cos[: x.shape[2]], self._sin[: x.shape[2]]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _size(x: Tensor) -> Tensor:
    """Root mean square of each row, [T,1]."""
    return x.pow(2).mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-12)
