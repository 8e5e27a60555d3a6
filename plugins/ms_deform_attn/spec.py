"""Multi-scale deformable attention: ports, letters, types.

Letters: N batch, S flattened pixels of all levels, M heads, D head dim, L levels, Lq queries,
P points per level. The order of the five inputs is that of TensorRT's own
MultiscaleDeformableAttnPlugin_TRT, so that the stock plugin stays a possible lowering.
"""

from __future__ import annotations

from visionllm_edge.plugins.semantic_op import OpPort, SemanticOp

__all__ = ["MS_DEFORM_ATTN"]

# Half-precision values keep fp32 locations: an fp16 coordinate has 11 bits, less than one pixel of
# a 2048-pixel level and nothing left for the bilinear fraction.
_VALUE = ("float32", "float16", "bfloat16")
_FLOAT = ("float32", "float32", "float32")
_INDEX = ("int32", "int32", "int32")

MS_DEFORM_ATTN = SemanticOp(
    name="MultiScaleDeformableAttention",
    summary="A weighted sum of bilinear samples from every level, per query and head.",
    inputs=(
        OpPort("value", ("N", "S", "M", "D"), _VALUE),
        OpPort("spatial_shapes", ("L", 2), _INDEX),
        OpPort("level_start_index", ("L",), _INDEX),
        OpPort("sampling_locations", ("N", "Lq", "M", "L", "P", 2), _FLOAT),
        OpPort("attention_weights", ("N", "Lq", "M", "L", "P"), _VALUE),
    ),
    outputs=(OpPort("output", ("N", "Lq", "M", "D"), _VALUE),),
    attributes=(),
    module="visionllm_edge.plugins.ms_deform_attn",
)
