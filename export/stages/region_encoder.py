"""Stage `region_encoder`: masks of one picture to rows of the LLM's input, one per region."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.components.region_encoder import RegionEncoderStage
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.stage import Bucket, PortTable, Stage
from visionllm_edge.runtime.ports import StagePorts
from visionllm_edge.runtime.regions import Box, Point, Region, Scribble, model_mask

__all__ = ["RegionEncoder"]

_SEED = 20_240_609


class RegionEncoder(Stage):
    """See the module."""

    name = "region_encoder"
    opset = 19
    weight_prefixes = ("region_encoder.", "vis_encoder.")
    trace_case = Case(regions=3)
    check_cases = (Case(regions=1), Case(regions=5))

    def wanted(self, config: VisionLLMConfig) -> bool:
        """See `Stage`."""
        return config.use_region_encoder

    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        size, tokens = config.vision.image_size, config.vision.tokens_per_tile
        width = config.vision.hidden_size
        return PortTable(
            inputs={
                "pixels": ("float32", 1, 3, size, size),
                "masks": ("float32", "R", 1, size, size),
                "level1": ("float32", 1, tokens, width),
                "states": ("float32", 1, tokens + 1, width),
            },
            outputs={"region_tokens": ("float32", "R", config.llm.hidden_size)},
        ).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        return RegionEncoderStage(model.vis_encoder, model.region_encoder)

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        pixels = examples.tiles(1)
        with torch.no_grad():
            before, states = examples.model.vis_encoder.states(pixels)
        return {
            "pixels": pixels,
            "masks": _masks(case.regions, pixels.shape[-1]),
            "level1": before[:, 1:].contiguous(),
            "states": states,
        }


def _masks(count: int, side: int) -> Tensor:
    """float32 [R,1,I,I]: what users draw, by turns a box, a click, a scribble."""
    rng = np.random.default_rng(_SEED)
    masks = []
    for index in range(count):
        x, y = sorted(rng.uniform(0, side, 2)), sorted(rng.uniform(0, side, 2))
        kinds: tuple[Region, ...] = (
            Box(x[0], y[0], x[1] + 1, y[1] + 1),
            Point(x[0], y[1]),
            Scribble(((x[0], y[0]), (x[1], y[1]))),
        )
        masks.append(model_mask(kinds[index % 3], (side, side), side))
    return torch.from_numpy(np.stack(masks).astype(np.float32)[:, None])
