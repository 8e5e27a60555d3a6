"""What the four stages of the keypoint decoder have in common."""

from __future__ import annotations

from collections.abc import Mapping

from visionllm_edge.export.components.geometry import Geometry
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.config_pose import PoseConfig
from visionllm_edge.export.stages.stage import Bucket, Stage

__all__ = ["PoseStage", "pose_map_shape", "pose_of"]

_STRIDES = {2: 8, 3: 16, 4: 32}


def pose_map_shape(config: VisionLLMConfig, level: int) -> tuple[str | int, ...]:
    """Dtype and axes of backbone map `level` (2 to 4)."""
    stride = _STRIDES[level]
    channels = pose_of(config).backbone.channels[level - 1]
    return ("float32", 1, channels, f"H/{stride}", f"W/{stride}")


def pose_of(config: VisionLLMConfig) -> PoseConfig:
    """The keypoint decoder's config; a stage is asked only where there is one."""
    assert config.pose is not None, "the stage is not wanted without a keypoint decoder"
    return config.pose


class PoseStage(Stage):
    """Base of the stages."""

    opset = 19
    bucketed = True
    weight_prefixes = ("unipose.",)

    def wanted(self, config: VisionLLMConfig) -> bool:
        """See `Stage`."""
        return config.pose is not None

    def bucket_list(self, config: VisionLLMConfig) -> list[Bucket | None]:
        """See `Stage`."""
        return [*config.deployment.pose_buckets]

    def bucket_sizes(self, config: VisionLLMConfig, bucket: Bucket) -> Mapping[str, int]:
        """See `Stage`."""
        height, width = bucket
        sizes = {"H": height, "W": width, "S": Geometry(height, width).size}
        for stride in _STRIDES.values():
            sizes[f"H/{stride}"], sizes[f"W/{stride}"] = height // stride, width // stride
        return sizes
