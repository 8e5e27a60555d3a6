"""Stage `llm_decoder`: embeddings in, logits, hidden states and the updated cache out.

Its graph is built, not traced: `visionllm_edge.export.llm.decoder_graph`.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch
from torch import Tensor, nn

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.llm.decoder_graph import decoder_graph, decoder_ports
from visionllm_edge.export.llm.decoder_weights import DenseWeights, StateDict
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.stage import Bucket, Stage
from visionllm_edge.runtime.backends.base import PRESENT_PREFIX
from visionllm_edge.runtime.ports import Array, StagePorts

__all__ = ["LlmDecoder"]


class LlmDecoder(Stage):
    """See the module."""

    name = "llm_decoder"
    opset = 21
    weight_prefixes = ("llm.",)
    trace_case = Case(rows=6, past=3, capacity=48, hidden=4, scored=2)
    # A token, a super-link step of 1 + 4 rows, one of 1 + 64, a prompt into an empty cache, and a
    # step that fills the cache to its last row with every row asked for.
    check_cases = (
        Case(rows=1, past=37, capacity=64),
        Case(rows=5, past=59, capacity=64, hidden=4),
        Case(rows=65, past=10, capacity=96, hidden=64),
        Case(rows=40, past=0, capacity=64),
        Case(rows=7, past=25, capacity=32, hidden=7, scored=7),
    )

    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        return decoder_ports(config.llm)

    def canonical(
        self, examples: Examples, bucket: Bucket | None, *, name: str, ports: StagePorts
    ) -> ir.Model:
        """See `Stage`."""
        llm = examples.model.llm
        return decoder_graph(llm.config, DenseWeights(StateDict(llm.config, llm.state_dict())))

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        return model.llm

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        names = [port.name for port in self.ports(examples.config).inputs]
        tensors = [
            examples.embeddings(case.rows, seed=3),
            torch.tensor([case.past]),
            torch.arange(case.rows - case.hidden, case.rows),
            torch.arange(case.hidden - case.scored, case.hidden),
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
