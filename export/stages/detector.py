"""What the four detector stages have in common: one graph per bucket, sizes that follow from it."""

from __future__ import annotations

from collections.abc import Mapping

from visionllm_edge.export.components.geometry import Geometry
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.stage import Bucket, Stage

__all__ = ["DetectorStage", "map_shape"]

_STRIDES = {1: 4, 2: 8, 3: 16, 4: 32}


def map_shape(config: VisionLLMConfig, level: int) -> tuple[str | int, ...]:
    """Dtype and axes of backbone map `level` (1 to 4)."""
    stride = _STRIDES[level]
    channels = config.detector.backbone.channels[level - 1]
    return ("float32", 1, channels, f"H/{stride}", f"W/{stride}")


class DetectorStage(Stage):
    """Base of the detector stages."""

    opset = 19
    bucketed = True
    weight_prefixes = ("gdino.",)

    def bucket_sizes(self, config: VisionLLMConfig, bucket: Bucket) -> Mapping[str, int]:
        """See `Stage`."""
        height, width = bucket
        sizes = {"H": height, "W": width, "S": Geometry(height, width).size}
        for stride in _STRIDES.values():
            sizes[f"H/{stride}"], sizes[f"W/{stride}"] = height // stride, width // stride
        return sizes
