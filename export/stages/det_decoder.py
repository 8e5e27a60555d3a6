"""Stage `det_decoder`: memory and text features to queries, class logits and boxes."""

from __future__ import annotations

from torch import Tensor, nn

from visionllm_edge.export.components.model import DetDecoderStage, VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.detector import DetectorStage
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.stage import Bucket, PortTable
from visionllm_edge.runtime.ports import StagePorts

__all__ = ["DetDecoder"]


class DetDecoder(DetectorStage):
    """See the module."""

    name = "det_decoder"
    sees_queries = True
    trace_case = Case(texts=3, fill=0.8)
    check_cases = (Case(texts=1, fill=1.0), Case(texts=7, fill=0.6))

    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        width, queries = config.detector.d_model, config.detector.queries
        return PortTable(
            inputs={
                "memory": ("float32", 1, "S", width),
                "text": ("float32", 1, "T", width),
                "valid_size": ("int64", 2),
            },
            outputs={
                "queries": ("float32", 1, queries, width),
                "logits": ("float32", 1, queries, "T"),
                "boxes": ("float32", 1, queries, 4),
            },
        ).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        assert bucket is not None, "a detector stage has buckets"
        return DetDecoderStage(model, bucket)

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        assert bucket is not None, "a detector stage has buckets"
        memory, text, _ = examples.encoded(bucket, case.fill, case.texts)
        return {
            "memory": memory,
            "text": text,
            "valid_size": examples.valid_size(bucket, case.fill),
        }
