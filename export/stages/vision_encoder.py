"""Stage `vision_encoder`: tiles to image tokens, CLIP tower and bridge in one graph.

A checkpoint with a region encoder also gets what that one reads: the hidden states of the last two
levels before the end, of every tile.
"""

from __future__ import annotations

from torch import Tensor, nn

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.components.vision_encoder import VisionEncoderStage
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
        width = config.vision.hidden_size
        outputs: dict[str, tuple[str | int, ...]] = {
            "image_tokens": ("float32", "n", tokens, config.llm.hidden_size)
        }
        if config.use_region_encoder:
            outputs |= {
                "level1": ("float32", "n", tokens, width),
                "states": ("float32", "n", tokens + 1, width),
            }
        inputs = {"pixels": ("float32", "n", 3, size, size)}
        return PortTable(inputs=inputs, outputs=outputs).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        regions = model.config.use_region_encoder
        return VisionEncoderStage(model.vis_encoder, model.vl_bridge, regions=regions)

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        return {"pixels": examples.tiles(case.tiles)}
