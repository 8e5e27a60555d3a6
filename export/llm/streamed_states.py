"""Hidden states of a language model of any size: one layer in memory at a time.

What runs are the layers of `visionllm_edge.export.components.llm_decoder` in float32; one layer is
filled with the weights of each in turn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from visionllm_edge.export.components.llm_decoder import Layer, Llama, rope_tables
from visionllm_edge.export.llm.weights import EMBEDDING, LlmWeights

__all__ = ["StreamedLanguage"]


class StreamedLanguage:
    """Gives examples their rows and hidden states; implements `LanguageRows`.

    Args:
        weights: of the language model.
    """

    def __init__(self, weights: LlmWeights) -> None:
        """Nothing is read yet."""
        self._weights = weights

    def embed(self, ids: Tensor) -> Tensor:
        """Rows of the embedding table [s,D] of ids int64 [s], float32."""
        return self._weights.tensor(EMBEDDING)[ids].float()

    def hidden(self, rows: Tensor) -> Tensor:
        """Hidden states [1,s,D] of embedded rows [1,s,D], after the final norm."""
        with torch.no_grad():
            return _StreamedLlama(self._weights).teacher_forced(rows)


class _StreamedLlama(Llama):
    """A language model that holds one layer and the final norm."""

    def __init__(self, weights: LlmWeights) -> None:
        with torch.device("meta"):
            super().__init__(dataclasses.replace(weights.config, num_hidden_layers=1))
        self._weights = weights
        self.cos, self.sin = rope_tables(weights.config)
        self._fill("model.norm.", self.model.norm)

    def layers(self) -> Iterator[Layer]:
        layer = self.model.layers[0]
        for number in range(self._weights.config.num_hidden_layers):
            self._fill(f"model.layers.{number}.", layer)
            yield layer

    def _fill(self, prefix: str, module: nn.Module) -> None:
        tensors = {
            name: self._weights.tensor(prefix + name).float() for name in module.state_dict()
        }
        module.load_state_dict(tensors, assign=True)
