"""Where the decoder graph gets its weights from: names, shapes, and one matrix at a time.

The graph asks for a linear by the official names of the matrices that it stacks (`q|k|v`,
`gate|up`), without the prefix `llm.`. What it gets says how many outputs and inputs the linear has
and loads the numbers when they are written to a file; a model of any size is never in memory.

=======================  ======================================================================
kind                     what the graph makes of it
=======================  ======================================================================
`DenseLinear`            MatMul with float32 [K,N]
`BlockLinear`            QuantizedLinear; with a zero point, a small MatMul on block sums beside
=======================  ======================================================================

K is the number of inputs (`columns` of the stored matrix [N,K]), N of outputs (`rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.export.config import LlmConfig

if TYPE_CHECKING:
    from torch import Tensor

    from visionllm_edge.export.quantize.matrix import BlockQuantized

__all__ = [
    "FINAL_NORM",
    "HEAD",
    "BlockLinear",
    "DecoderWeights",
    "DenseLinear",
    "DenseWeights",
    "MatrixSource",
    "StateDict",
    "decoder_linears",
    "layer_linears",
    "layer_norms",
    "matrix_shape",
]

HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"


@dataclass(frozen=True)
class DenseLinear:
    """A linear in float32.

    Attributes:
        rows: outputs, N.
        columns: inputs, K.
        load: the weight as the graph multiplies by it, float32 [K,N].
    """

    rows: int
    columns: int
    load: Callable[[], NDArray[np.float32]]


@dataclass(frozen=True)
class BlockLinear:
    """A linear in blocks of 4 or 8 bits.

    Attributes:
        rows: outputs, N.
        columns: inputs, K; a multiple of `block_size`.
        bits: 4 or 8.
        block_size: inputs that share a scale.
        asymmetric: whether `load` gives a zero offset.
        load: weight uint8 [N,K/G,G*bits/8], scales float16 [N,K/G], zero offset float16 [N,K/G].
    """

    rows: int
    columns: int
    bits: int
    block_size: int
    asymmetric: bool
    load: Callable[[], BlockQuantized]


class DecoderWeights(Protocol):
    """All weights of one decoder, each loaded when asked for."""

    def norm(self, name: str) -> NDArray[np.float32]:
        """A norm's factors [D], such as ``model.layers.3.input_layernorm.weight``."""
        ...

    def linear(self, names: tuple[str, ...]) -> DenseLinear | BlockLinear:
        """The linear whose outputs are those of the named matrices, one after the other.

        Nothing is read yet; the graph calls `load` once or several times, later.
        """
        ...


class MatrixSource(Protocol):
    """What `DenseWeights` needs of a source of weights."""

    @property
    def config(self) -> LlmConfig:
        """Sizes."""
        ...

    def tensor(self, name: str) -> Tensor:
        """A tensor in the type it is stored in."""
        ...


class StateDict:
    """The weights of a torch module as a source of matrices.

    Args:
        config: sizes.
        tensors: by official name, without the prefix `llm.`.
    """

    def __init__(self, config: LlmConfig, tensors: Mapping[str, Tensor]) -> None:
        """Nothing is copied."""
        self.config = config
        self._tensors = tensors

    def tensor(self, name: str) -> Tensor:
        """A tensor of the module."""
        return self._tensors[name]


class DenseWeights:
    """Every linear in float32.

    Args:
        source: the stored weights, in any floating type.
    """

    def __init__(self, source: MatrixSource) -> None:
        """Nothing is read yet."""
        self._source = source

    def norm(self, name: str) -> NDArray[np.float32]:
        """See `DecoderWeights`."""
        return self._array(name)

    def linear(self, names: tuple[str, ...]) -> DenseLinear:
        """See `DecoderWeights`."""
        shapes = [matrix_shape(self._source.config, name) for name in names]
        (columns,) = {shape[1] for shape in shapes}

        def load() -> NDArray[np.float32]:
            # [N,K] -> [K,N], matrix by matrix, so that one copy of the linear is made.
            out = np.empty((columns, sum(rows for rows, _ in shapes)), np.float32)
            start = 0
            for name, (rows, _) in zip(names, shapes, strict=True):
                out[:, start : start + rows] = self._array(name).T
                start += rows
            return out

        return DenseLinear(sum(rows for rows, _ in shapes), columns, load)

    def _array(self, name: str) -> NDArray[np.float32]:
        array: NDArray[np.float32] = self._source.tensor(name).detach().float().numpy()
        return array


def layer_linears(layer: int) -> dict[str, tuple[str, ...]]:
    """The stacked linears of a layer: ``qkv``, ``o``, ``gate_up``, ``down`` -> official names."""
    attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
    return {
        "qkv": tuple(f"{attention}{kind}_proj.weight" for kind in "qkv"),
        "o": (f"{attention}o_proj.weight",),
        "gate_up": tuple(f"{mlp}{kind}_proj.weight" for kind in ("gate", "up")),
        "down": (f"{mlp}down_proj.weight",),
    }


def layer_norms(layer: int) -> tuple[str, str]:
    """The norms of a layer: before the attention, before the MLP."""
    prefix = f"model.layers.{layer}."
    return f"{prefix}input_layernorm.weight", f"{prefix}post_attention_layernorm.weight"


def decoder_linears(config: LlmConfig) -> list[tuple[str, ...]]:
    """Every linear of the graph, in the order in which it runs; the head last."""
    layers = range(config.num_hidden_layers)
    return [names for layer in layers for names in layer_linears(layer).values()] + [(HEAD,)]


def matrix_shape(config: LlmConfig, name: str) -> tuple[int, int]:
    """Rows and columns [N,K] of a stored matrix.

    Raises:
        KeyError: no matrix of the decoder has this name.
    """
    width, ffn = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    shapes = {
        "q_proj": (queries, width),
        "k_proj": (keys, width),
        "v_proj": (keys, width),
        "o_proj": (width, queries),
        "gate_proj": (ffn, width),
        "up_proj": (ffn, width),
        "down_proj": (width, ffn),
        "lm_head": (config.vocab_size, width),
    }
    return shapes[name.split(".")[-2]]
