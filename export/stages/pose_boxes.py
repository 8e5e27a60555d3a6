"""Stage `pose_boxes`: memory and text features to the best instances and their boxes."""

from __future__ import annotations

from torch import Tensor, nn

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.components.pose_stages import PoseBoxesStage
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.examples_pose import pose_encoded
from visionllm_edge.export.stages.pose import PoseStage, pose_of
from visionllm_edge.export.stages.stage import Bucket, PortTable
from visionllm_edge.runtime.ports import StagePorts

__all__ = ["PoseBoxes"]


class PoseBoxes(PoseStage):
    """See the module."""

    name = "pose_boxes"
    trace_case = Case(texts=3, fill=0.8)
    check_cases = (Case(texts=1, fill=1.0), Case(texts=7, fill=0.6))

    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        pose = pose_of(config)
        return PortTable(
            inputs={
                "memory": ("float32", 1, "S", pose.d_model),
                "text": ("float32", 1, "No", pose.d_model),
                "valid_size": ("int64", 2),
            },
            outputs={
                "instances": ("float32", 1, pose.num_instances, pose.d_model),
                "boxes": ("float32", 1, pose.num_instances, 4),
            },
        ).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        assert bucket is not None, "a pose stage has buckets"
        return PoseBoxesStage(model.unipose, bucket)

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        assert bucket is not None, "a pose stage has buckets"
        found = pose_encoded(examples, bucket, case.fill, case.texts)
        return {
            "memory": found.memory,
            "text": found.text,
            "valid_size": examples.valid_size(bucket, case.fill),
        }
