"""The stage table: one graph of the chain per file, in the order of compilation."""

from __future__ import annotations

from visionllm_edge.export.stages.det_backbone import DetBackbone
from visionllm_edge.export.stages.det_decoder import DetDecoder
from visionllm_edge.export.stages.det_encoder import DetEncoder
from visionllm_edge.export.stages.det_masks import DetMasks
from visionllm_edge.export.stages.llm_decoder import LlmDecoder
from visionllm_edge.export.stages.stage import Bucket, Stage, fixed_ports
from visionllm_edge.export.stages.vision_encoder import VisionEncoder

__all__ = ["STAGES", "Bucket", "Stage", "fixed_ports"]

STAGES: tuple[Stage, ...] = (
    VisionEncoder(),
    LlmDecoder(),
    DetBackbone(),
    DetEncoder(),
    DetDecoder(),
    DetMasks(),
)
