"""Stages `gen_unet` and `edit_unet`: noisy latents, time step and condition to the noise in them.

For editing the latents of the source picture stand behind the noisy ones on the channel axis. The
batch holds the branches of the guidance: 2 for generation, 3 for editing; sampler and guidance are
the runtime's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visionllm_edge.export.components.diffusion import UNetStage
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.diffusion import DiffusionStage
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.examples_diffusion import (
    DiffusionCase,
    branch_conditions,
    noisy_latents,
)
from visionllm_edge.export.stages.stage import Bucket, PortTable
from visionllm_edge.runtime.ports import StagePorts

__all__ = ["EditUNet", "GenUNet"]


class _UNet(DiffusionStage):
    """See the module."""

    trace_case = DiffusionCase()
    # The first and the last time step; sizes that do not halve evenly on every level.
    check_cases = (
        DiffusionCase(batch=1, height=8, width=8, timestep=999.0),
        DiffusionCase(batch=3, height=10, width=7, timestep=0.0),
    )

    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        sizes = self.sizes(config)
        unet, adapter = sizes.unet, sizes.adapter
        return PortTable(
            inputs={
                "latents": ("float32", "b", unet.in_channels, "h", "w"),
                "timestep": ("float32", 1),
                "condition": ("float32", "b", adapter.num_queries, adapter.hidden_size),
            },
            outputs={"noise": ("float32", "b", unet.out_channels, "h", "w")},
        ).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        return UNetStage(self.branch(model).sd_unet, self.sizes(model.config).unet)

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        assert isinstance(case, DiffusionCase), "the cases of this stage"
        branch, sizes = self.branch(examples.model), self.sizes(examples.config)
        return {
            "latents": noisy_latents(branch, sizes, case),
            "timestep": torch.tensor([case.timestep]),
            "condition": branch_conditions(examples, branch, sizes, case.batch),
        }


class GenUNet(_UNet):
    """UNet of the generation branch."""

    name = "gen_unet"
    edits = False
    weight_prefixes = ("sd.sd_unet.",)


class EditUNet(_UNet):
    """UNet of the editing branch."""

    name = "edit_unet"
    edits = True
    weight_prefixes = ("ip2p.sd_unet.",)
