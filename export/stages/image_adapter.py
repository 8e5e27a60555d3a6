"""Stages `gen_adapter` and `edit_adapter`: states of super-link rows to the UNet's condition."""

from __future__ import annotations

from torch import Tensor, nn

from visionllm_edge.export.components.diffusion import AdapterStage
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.diffusion import DiffusionStage
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.examples_diffusion import branch_states
from visionllm_edge.export.stages.stage import Bucket, PortTable
from visionllm_edge.runtime.ports import StagePorts

__all__ = ["EditAdapter", "GenAdapter"]


class _Adapter(DiffusionStage):
    """See the module. Every size is fixed, so there is one case."""

    trace_case = Case()
    check_cases = ()

    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        sizes = self.sizes(config).adapter
        return PortTable(
            inputs={"states": ("float32", 1, sizes.num_states, sizes.llm_hidden_size)},
            outputs={"condition": ("float32", 1, sizes.num_queries, sizes.hidden_size)},
        ).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        return AdapterStage(self.branch(model))

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        return {"states": branch_states(examples, self.sizes(examples.config))}


def _prefixes(part: str) -> tuple[str, ...]:
    return (f"{part}.emb_proj.", f"{part}.llm2sd_mapper.", f"{part}.llm2sd_mapper_queries")


class GenAdapter(_Adapter):
    """Adapter of the generation branch."""

    name = "gen_adapter"
    edits = False
    weight_prefixes = _prefixes("sd")


class EditAdapter(_Adapter):
    """Adapter of the editing branch."""

    name = "edit_adapter"
    edits = True
    weight_prefixes = _prefixes("ip2p")
