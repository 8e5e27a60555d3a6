"""The stage table: one graph of the chain per file, in the order of compilation."""

from __future__ import annotations

from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.det_backbone import DetBackbone
from visionllm_edge.export.stages.det_decoder import DetDecoder
from visionllm_edge.export.stages.det_encoder import DetEncoder
from visionllm_edge.export.stages.det_masks import DetMasks
from visionllm_edge.export.stages.image_adapter import EditAdapter, GenAdapter
from visionllm_edge.export.stages.image_unet import EditUNet, GenUNet
from visionllm_edge.export.stages.image_vae import EditVaeDecoder, EditVaeEncoder, GenVaeDecoder
from visionllm_edge.export.stages.llm_decoder import LlmDecoder
from visionllm_edge.export.stages.pose_backbone import PoseBackbone
from visionllm_edge.export.stages.pose_boxes import PoseBoxes
from visionllm_edge.export.stages.pose_encoder import PoseEncoder
from visionllm_edge.export.stages.pose_keypoints import PoseKeypoints
from visionllm_edge.export.stages.region_encoder import RegionEncoder
from visionllm_edge.export.stages.stage import Bucket, Stage, fixed_ports
from visionllm_edge.export.stages.vision_encoder import VisionEncoder

__all__ = ["STAGES", "Bucket", "Stage", "fixed_ports", "stages_of"]

STAGES: tuple[Stage, ...] = (
    VisionEncoder(),
    RegionEncoder(),
    LlmDecoder(),
    DetBackbone(),
    DetEncoder(),
    DetDecoder(),
    DetMasks(),
    PoseBackbone(),
    PoseEncoder(),
    PoseBoxes(),
    PoseKeypoints(),
    GenAdapter(),
    GenUNet(),
    GenVaeDecoder(),
    EditAdapter(),
    EditVaeEncoder(),
    EditUNet(),
    EditVaeDecoder(),
)


def stages_of(config: VisionLLMConfig) -> tuple[Stage, ...]:
    """The stages that a checkpoint with this config has, in the order of compilation."""
    return tuple(stage for stage in STAGES if stage.wanted(config))
