"""A checkpoint's language model in transformers on torch: what a bundle is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TorchLlm"]


class TorchLlm:
    """transformers' own LLaMA with the checkpoint's weights, in fp32; a `LanguageModel`.

    Args:
        checkpoint: whatever `visionllm_edge.export.llm.weights.open_llm` reads.
        threads: of torch.
    """

    def __init__(self, checkpoint: Path, *, threads: int) -> None:
        """Load the weights."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from visionllm_edge.export.llm.weights import open_llm

        torch.set_num_threads(threads)
        weights = open_llm(checkpoint)
        config = weights.config
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=config.num_key_value_heads,
                head_dim=config.head_dim,
                rms_norm_eps=config.rms_norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                max_position_embeddings=config.max_position_embeddings,
                tie_word_embeddings=config.tie_word_embeddings,
                pad_token_id=None,
            )
        )
        self.vocabulary = config.vocab_size
        self._model = model.eval().requires_grad_(False)
        with torch.no_grad():
            parameters = dict(self._model.named_parameters())  # a tied head is not among them
            missing = parameters.keys() - set(weights.names())
            assert not missing, f"the checkpoint lacks {sorted(missing)}"
            for name, parameter in parameters.items():
                parameter.copy_(weights.tensor(name).float())

    def logits(self, tokens: Sequence[int], rows: int) -> Iterator[NDArray[np.float32]]:
        """See `LanguageModel`."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache()
        for start in range(0, len(tokens), rows):
            part = torch.tensor([list(tokens[start : start + rows])])
            with torch.inference_mode():
                output = self._model(part, past_key_values=cache, use_cache=True)
            yield output.logits[0].numpy()

    def answer(self, prompt: Sequence[int], count: int, stop: frozenset[int]) -> list[int]:
        """See `LanguageModel`."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache()
        out: list[int] = []
        given = list(prompt)
        while len(out) < count:
            with torch.inference_mode():
                output = self._model(
                    torch.tensor([given]), past_key_values=cache, use_cache=True, logits_to_keep=1
                )
            token = int(output.logits[0, -1].argmax())
            if token in stop:
                break
            out.append(token)
            given = [token]
        return out
