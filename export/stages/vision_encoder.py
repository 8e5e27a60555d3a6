"""Stage `vision_encoder`: tiles to image tokens, CLIP tower and bridge in one graph."""

from __future__ import annotations

from torch import Tensor, nn

from visionllm_edge.export.components.model import VisionEncoderStage, VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.stage import Bucket, PortTable, Stage
from visionllm_edge.runtime.ports import StagePorts

__all__ = ["VisionEncoder"]


class VisionEncoder(Stage):
    """See the module."""

    name = "vision_encoder"
    opset = 19
    weight_prefixes = ("vis_encoder.", "vl_bridge.")
    trace_case = Case(tiles=2)
    check_cases = (Case(tiles=1), Case(tiles=3))

    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        size, tokens = config.vision.image_size, config.vision.tokens_per_tile
        return PortTable(
            inputs={"pixels": ("float32", "n", 3, size, size)},
            outputs={"image_tokens": ("float32", "n", tokens, config.llm.hidden_size)},
        ).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        return VisionEncoderStage(model)

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        return {"pixels": examples.tiles(case.tiles)}
