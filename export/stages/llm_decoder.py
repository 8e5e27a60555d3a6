"""Stage `llm_decoder`: embeddings in, logits, hidden states and the updated cache out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.stage import Bucket, PortTable, Stage
from visionllm_edge.runtime.backends.base import PAST_PREFIX, PRESENT_PREFIX
from visionllm_edge.runtime.ports import Array, StagePorts

__all__ = ["LlmDecoder"]


class LlmDecoder(Stage):
    """See the module."""

    name = "llm_decoder"
    opset = 21
    weight_prefixes = ("llm.",)
    trace_case = Case(rows=6, past=3, capacity=48)
    # A token, a super-link step of 1 + 4 rows, one of 1 + 64, and a prompt into an empty cache.
    check_cases = (
        Case(rows=1, past=37, capacity=64),
        Case(rows=5, past=59, capacity=64),
        Case(rows=65, past=10, capacity=96),
        Case(rows=40, past=0, capacity=64),
    )

    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        llm = config.llm
        dim, vocab = llm.hidden_size, llm.vocab_size
        buffer = ("float32", 1, llm.num_key_value_heads, "C", llm.head_dim)
        entries = [f"{i}.{kind}" for i in range(llm.num_hidden_layers) for kind in ("key", "value")]
        return PortTable(
            inputs={
                "inputs_embeds": ("float32", 1, "s", dim),
                "past_length": ("int64", 1),
                **{PAST_PREFIX + entry: buffer for entry in entries},
            },
            outputs={
                "logits": ("float32", 1, vocab),
                "hidden": ("float32", 1, "s", dim),
                **{PRESENT_PREFIX + entry: buffer for entry in entries},
            },
        ).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        return model.llm

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        names = [port.name for port in self.ports(examples.config).inputs]
        tensors = [
            examples.embeddings(case.rows, seed=3),
            torch.tensor([case.past]),
            *examples.cache(case.past, case.capacity),
        ]
        return dict(zip(names, tensors, strict=True))

    def compared(self, outputs: Mapping[str, Array], case: Case) -> dict[str, Array]:
        """See `Stage`. Rows of the cache that nobody wrote hold anything."""
        valid = case.past + case.rows
        return {
            name: array[:, :, :valid] if name.startswith(PRESENT_PREFIX) else array
            for name, array in outputs.items()
        }
