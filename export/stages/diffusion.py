"""What the stages of the two diffusion branches have in common: which branch, and its sizes.

A branch is `gen` (generation, `sd.` in a checkpoint) or `edit` (editing, `ip2p.`). Latents are
``h x w``, pictures ``H x W`` pixels; batch and sizes are free in every graph.
"""

from __future__ import annotations

from typing import ClassVar

from visionllm_edge.export.components.diffusion import DiffusionBranch
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.diffusion_sizes import DiffusionConfig
from visionllm_edge.export.stages.stage import Stage

__all__ = ["DiffusionStage"]


class DiffusionStage(Stage):
    """Base of the stages of a branch.

    Attributes:
        edits: whether it is the editing branch.
    """

    opset = 19
    edits: ClassVar[bool]

    def wanted(self, config: VisionLLMConfig) -> bool:
        """See `Stage`."""
        return (config.editing if self.edits else config.generation) is not None

    def sizes(self, config: VisionLLMConfig) -> DiffusionConfig:
        """Sizes of the branch."""
        branch = config.editing if self.edits else config.generation
        assert branch is not None, f"{self.name}: asked of a model without that branch"
        return branch

    def branch(self, model: VisionLLM) -> DiffusionBranch:
        """The branch of a model."""
        return model.ip2p if self.edits else model.sd
