"""Stage `pose_backbone`: a padded picture to three feature maps (strides 8, 16, 32)."""

from __future__ import annotations

from torch import Tensor, nn

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.components.pose_stages import PoseBackboneStage
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.pose import PoseStage, pose_map_shape
from visionllm_edge.export.stages.stage import Bucket, PortTable
from visionllm_edge.runtime.ports import StagePorts

__all__ = ["PoseBackbone"]


class PoseBackbone(PoseStage):
    """See the module."""

    name = "pose_backbone"
    weight_prefixes = ("unipose.backbone.",)
    trace_case = Case(fill=0.8)
    check_cases = (Case(fill=1.0),)

    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        return PortTable(
            inputs={"pixels": ("float32", 1, 3, "H", "W")},
            outputs={f"map{level}": pose_map_shape(config, level) for level in (2, 3, 4)},
        ).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        assert bucket is not None, "a pose stage has buckets"
        return PoseBackboneStage(model.unipose, bucket)

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        assert bucket is not None, "a pose stage has buckets"
        return {"pixels": examples.pixels(bucket, case.fill)}
