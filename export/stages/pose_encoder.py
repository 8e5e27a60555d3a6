"""Stage `pose_encoder`: feature maps and states of object classes to memory and text features."""

from __future__ import annotations

from torch import Tensor, nn

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.components.pose_stages import PoseEncoderStage
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.examples_pose import object_states, pose_maps
from visionllm_edge.export.stages.pose import PoseStage, pose_map_shape, pose_of
from visionllm_edge.export.stages.stage import Bucket, PortTable
from visionllm_edge.runtime.ports import StagePorts

__all__ = ["PoseEncoder"]


class PoseEncoder(PoseStage):
    """See the module."""

    name = "pose_encoder"
    trace_case = Case(texts=3, fill=0.8)
    check_cases = (Case(texts=1, fill=1.0), Case(texts=7, fill=0.6))

    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        rows, dim, width = config.num_embs, config.llm.hidden_size, pose_of(config).d_model
        return PortTable(
            inputs={
                **{f"map{level}": pose_map_shape(config, level) for level in (2, 3, 4)},
                "valid_size": ("int64", 2),
                "object_states": ("float32", 1, "No", rows, dim),
            },
            outputs={"memory": ("float32", 1, "S", width), "text": ("float32", 1, "No", width)},
        ).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        assert bucket is not None, "a pose stage has buckets"
        return PoseEncoderStage(model.unipose, bucket)

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        assert bucket is not None, "a pose stage has buckets"
        maps = pose_maps(examples, bucket, case.fill)
        return {
            **{f"map{level}": maps[level - 2] for level in (2, 3, 4)},
            "valid_size": examples.valid_size(bucket, case.fill),
            "object_states": object_states(examples, case.texts),
        }
