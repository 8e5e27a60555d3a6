"""Stage `det_masks`: masks of the chosen queries at a quarter of the bucket's size."""

from __future__ import annotations

from torch import Tensor, nn

from visionllm_edge.export.components.model import DetMasksStage, VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.detector import DetectorStage, map_shape
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.stage import Bucket, PortTable
from visionllm_edge.runtime.ports import StagePorts

__all__ = ["DetMasks"]


class DetMasks(DetectorStage):
    """See the module."""

    name = "det_masks"
    sees_queries = True
    trace_case = Case(picks=4, fill=0.8)
    check_cases = (Case(picks=1, fill=1.0), Case(picks=9, fill=0.6))

    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        width = config.detector.d_model
        return PortTable(
            inputs={
                "map1": map_shape(config, 1),
                "memory": ("float32", 1, "S", width),
                "queries": ("float32", 1, "k", width),
            },
            outputs={"masks": ("float32", 1, "k", "H/4", "W/4")},
        ).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        assert bucket is not None, "a detector stage has buckets"
        return DetMasksStage(model, bucket)

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        assert bucket is not None, "a detector stage has buckets"
        memory, _, queries = examples.encoded(bucket, case.fill, case.texts)
        picks = min(case.picks, queries.shape[1])
        return {
            "map1": examples.maps(bucket, case.fill)[0],
            "memory": memory,
            "queries": queries[:, :picks].contiguous(),
        }
