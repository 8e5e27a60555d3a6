"""Stage `pose_keypoints`: instances and states of keypoint names to scores, boxes and keypoints."""

from __future__ import annotations

from torch import Tensor, nn

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.components.pose_stages import PoseKeypointsStage
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.examples_pose import (
    PoseCase,
    keypoint_states,
    pose_encoded,
)
from visionllm_edge.export.stages.pose import PoseStage, pose_of
from visionllm_edge.export.stages.stage import Bucket, PortTable
from visionllm_edge.runtime.ports import StagePorts

__all__ = ["PoseKeypoints"]


class PoseKeypoints(PoseStage):
    """See the module."""

    name = "pose_keypoints"
    trace_case = PoseCase(texts=3, keypoints=5, fill=0.8)
    check_cases = (
        PoseCase(texts=1, keypoints=1, fill=1.0),
        PoseCase(texts=2, keypoints=17, fill=0.6),
    )

    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        pose = pose_of(config)
        count, width = pose.num_instances, pose.d_model
        return PortTable(
            inputs={
                "memory": ("float32", 1, "S", width),
                "text": ("float32", 1, "No", width),
                "instances": ("float32", 1, count, width),
                "boxes": ("float32", 1, count, 4),
                "keypoint_states": ("float32", 1, "K", config.num_embs, config.llm.hidden_size),
                "valid_size": ("int64", 2),
            },
            outputs={
                "logits": ("float32", 1, count, "No"),
                "out_boxes": ("float32", 1, count, 4),
                "keypoints": ("float32", 1, count, "K", 2),
            },
        ).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        assert bucket is not None, "a pose stage has buckets"
        return PoseKeypointsStage(model.unipose, bucket)

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        assert bucket is not None, "a pose stage has buckets"
        assert isinstance(case, PoseCase), "this stage's cases name the keypoints' number"
        found = pose_encoded(examples, bucket, case.fill, case.texts)
        return {
            "memory": found.memory,
            "text": found.text,
            "instances": found.instances,
            "boxes": found.boxes,
            "keypoint_states": keypoint_states(examples, case.keypoints),
            "valid_size": examples.valid_size(bucket, case.fill),
        }
