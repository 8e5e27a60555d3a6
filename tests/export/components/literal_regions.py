"""The region encoder step by step, as the paper's code computes it: nothing is folded.

The running map grows by one CLIP level at a time and is sampled at the mask's pixels; the three
means are projected and averaged. ``limit`` and ``generator`` give the random draw of points that
the reference makes for large masks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

__all__ = ["literal_regions"]


def literal_regions(
    state: dict[str, Tensor],
    pixels: Tensor,
    masks: Tensor,
    levels: tuple[Tensor, Tensor, Tensor],
    *,
    limit: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Rows [r,D] from the weights by key, pixels [r,3,I,I], masks [r,1,I,I], levels [r,P,C]."""
    running = _mask_maps(state, torch.cat((pixels, masks), dim=1))
    regions, _, height, width = running.shape
    size = masks.shape[-1]
    results = []
    for level in levels:
        running = running + level.transpose(1, 2).reshape(regions, -1, height, width)
        rows = []
        for region in range(regions):
            points = masks[region, 0].nonzero()
            if limit is not None and len(points) > limit:
                chosen = torch.randperm(len(points), generator=generator)[:limit].sort().values
                points = points[chosen]
            grid = 2 * points.flip(-1).to(running.dtype) / size - 1  # (x, y)
            sampled = F.grid_sample(
                running[region][None],
                grid[None, None],
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )[0, :, 0]
            rows.append(sampled.mean(-1) if len(points) else sampled.sum(-1))
        pooled = torch.stack(rows)
        results.append(pooled @ state["up_dim.weight"].T + state["up_dim.bias"])
    return torch.stack(results).mean(0)


def _mask_maps(state: dict[str, Tensor], x: Tensor) -> Tensor:
    def conv(x: Tensor, index: int, stride: int) -> Tensor:
        name = f"mask_embedding.{index}"
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=stride)

    def norm(x: Tensor, index: int) -> Tensor:
        mean = x.mean(1, keepdim=True)
        deviation = (((x - mean) ** 2).mean(1, keepdim=True) + 1e-6) ** 0.5
        weight, bias = (state[f"mask_embedding.{index}.{part}"] for part in ("weight", "bias"))
        return (x - mean) / deviation * weight[:, None, None] + bias[:, None, None]

    def gelu(x: Tensor) -> Tensor:
        return nn.functional.gelu(x)

    x = gelu(norm(conv(x, 0, state["mask_embedding.0.weight"].shape[-1]), 1))
    x = gelu(norm(conv(x, 3, 2), 4))
    return conv(x, 6, 1)
