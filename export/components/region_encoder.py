"""Region encoder: a picture, a mask per region and three CLIP maps to one LLM row per region.

The mask goes through a small stack of convolutions together with the picture; the result is added
to the CLIP maps; the mean over the mask's pixels, sampled bilinearly, is projected to the LLM's
width. Three things of the reference are folded, each exact up to rounding:

1. It pools three running sums of maps at the same points and averages the results. Everything
   behind the pooling is affine, so one map is pooled: mask map + F1 + 2/3 F2 + 1/3 F3.
2. It gathers sampling points. Sampling and mean are linear in the map: one weight per cell.
3. It draws 2,304 points at random where a mask has more. All points are taken, which is the
   expectation of the draw; masks of up to 2,304 pixels are not affected.

Source: VisionLLM v2 (arXiv 2406.08394), appendix B.1, with the code's layout: no norm and no
activation behind the last convolution, and three levels of CLIP.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (the name every torch reader expects)
from torch import Tensor, nn

from visionllm_edge.export.components.vision_encoder import VisionTower
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.ops import grid_sample_prompt_pool

__all__ = ["RegionEncoder", "RegionEncoderStage"]

_EPS = 1e-6


class ChannelNorm(nn.Module):
    """Layer norm over the channels of every pixel of [n,C,h,w], biased variance."""

    def __init__(self, channels: int) -> None:
        """Ones and zeros, as layer norms begin."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        last = x.permute(0, 2, 3, 1)
        normed = F.layer_norm(last, self.weight.shape, self.weight, self.bias, _EPS)
        return normed.permute(0, 3, 1, 2)


class RegionEncoder(nn.Module):
    """Regions to LLM rows (keys ``mask_embedding.{0,1,3,4,6}`` and ``up_dim``)."""

    def __init__(self, config: VisionLLMConfig) -> None:
        """Widths follow the CLIP tower: C/16 and C/4 channels (64 and 256 in the released model).

        The two strided convolutions bring a picture to one cell per patch: half a patch, then two.
        """
        super().__init__()
        width, half_patch = config.vision.hidden_size, config.vision.patch_size // 2
        self.mask_embedding = nn.Sequential(
            nn.Conv2d(4, width // 16, half_patch, stride=half_patch),
            ChannelNorm(width // 16),
            nn.GELU(),
            nn.Conv2d(width // 16, width // 4, 2, stride=2),
            ChannelNorm(width // 4),
            nn.GELU(),
            nn.Conv2d(width // 4, width, 1),
        )
        self.up_dim = nn.Linear(width, config.llm.hidden_size)

    def forward(
        self, pixels: Tensor, masks: Tensor, level1: Tensor, level2: Tensor, level3: Tensor
    ) -> Tensor:
        """One row per region.

        Args:
            pixels: [r,3,I,I] or [1,3,I,I], the CLIP-normalised whole picture of each region, or
                of all of them.
            masks: [r,1,I,I], 0 or 1.
            level1: [r,P,C] or [1,P,C], CLIP's ``hidden_states[-3]`` without the class token.
            level2: the same of ``hidden_states[-2]``.
            level3: the same of ``hidden_states[-1]``.

        Returns:
            [r,D]. An empty mask gives the bias of ``up_dim``, which means nothing.
        """
        regions = masks.shape[0]
        pictures = pixels.expand(regions, *pixels.shape[1:])
        mask_maps = self.mask_embedding(torch.cat((pictures, masks.to(pixels.dtype)), dim=1))
        _, width, height_cells, width_cells = mask_maps.shape
        levels = level1 + level2 * (2 / 3) + level3 * (1 / 3)
        maps = mask_maps.permute(0, 2, 3, 1) + levels.reshape(-1, height_cells, width_cells, width)
        own_map = torch.arange(regions, dtype=torch.int32, device=masks.device)
        out: Tensor = self.up_dim(grid_sample_prompt_pool(maps, masks[:, 0], own_map))
        return out


class RegionEncoderStage(nn.Module):
    """Stage ``region_encoder``: one picture's maps and r masks to region_tokens [r,D].

    The last CLIP layer runs in here: only regions need it.
    """

    def __init__(self, tower: VisionTower, region_encoder: RegionEncoder) -> None:
        """Share the weights."""
        super().__init__()
        self.last_layer = tower.last_layer
        self.region_encoder = region_encoder

    def forward(self, pixels: Tensor, masks: Tensor, level1: Tensor, states: Tensor) -> Tensor:
        """Pixels [1,3,I,I], masks [r,1,I,I], level1 [1,P,C] and states [1,P+1,C] to [r,D]."""
        level3 = self.last_layer(states, attention_mask=None)[:, 1:]
        out: Tensor = self.region_encoder(pixels, masks, level1, states[:, 1:], level3)
        return out
