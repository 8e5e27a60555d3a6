"""Pooling of a feature map over the foreground of a mask: ports, letters, types.

Letters: N images (feature maps), Gh x Gw cells of a map, C channels, R regions, H x W mask pixels.
Regions are ragged: any number of them may point at one image, in any order.

Meaning: every mask pixel (y, x) that is not zero is a point at (x / W, y / H) of its region's map
(the corner of the pixel, no half-pixel offset). The map is sampled there bilinearly: cell centres
stand at (i + 0.5) / G, outside is zero. The result is the mean over the points. A region without
points, or whose image index is outside 0 .. N-1, gives zeros. The features are finite.
"""

from __future__ import annotations

from visionllm_edge.plugins.semantic_op import OpPort, SemanticOp

__all__ = ["GRID_SAMPLE_PROMPT_POOL"]

_FEATURE = ("float32", "float16", "bfloat16")
# A mask stays fp32 beside half-precision features: a small positive pixel must not become zero.
_MASK = ("float32", "float32", "float32")
_INDEX = ("int32", "int32", "int32")

GRID_SAMPLE_PROMPT_POOL = SemanticOp(
    name="GridSamplePromptPool",
    summary="The mean of a feature map, sampled bilinearly at every foreground pixel of a mask.",
    inputs=(
        OpPort("features", ("N", "Gh", "Gw", "C"), _FEATURE),
        OpPort("masks", ("R", "H", "W"), _MASK),
        OpPort("region_image", ("R",), _INDEX),
    ),
    outputs=(OpPort("pooled", ("R", "C"), _FEATURE),),
    attributes=(),
    module="visionllm_edge.plugins.grid_sample_prompt_pool",
)
