"""Stage `det_backbone`: a padded picture to four feature maps (strides 4, 8, 16, 32)."""

from __future__ import annotations

from torch import Tensor, nn

from visionllm_edge.export.components.model import DetBackboneStage, VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.detector import DetectorStage, map_shape
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.stage import Bucket, PortTable
from visionllm_edge.runtime.ports import StagePorts

__all__ = ["DetBackbone"]


class DetBackbone(DetectorStage):
    """See the module."""

    name = "det_backbone"
    weight_prefixes = ("gdino.model.backbone.",)
    trace_case = Case(fill=0.8)
    # Nothing but the bucket's size enters the graph: another picture is all there is to vary.
    check_cases = (Case(fill=1.0),)

    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        return PortTable(
            inputs={"pixels": ("float32", 1, 3, "H", "W")},
            outputs={f"map{level}": map_shape(config, level) for level in (1, 2, 3, 4)},
        ).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        assert bucket is not None, "a detector stage has buckets"
        return DetBackboneStage(model, bucket)

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        assert bucket is not None, "a detector stage has buckets"
        return {"pixels": examples.pixels(bucket, case.fill)}
