"""Stage `det_encoder`: feature maps and super-link states to memory and text features."""

from __future__ import annotations

from torch import Tensor, nn

from visionllm_edge.export.components.model import DetEncoderStage, VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.detector import DetectorStage, map_shape
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.stage import Bucket, PortTable
from visionllm_edge.runtime.ports import StagePorts

__all__ = ["DetEncoder"]


class DetEncoder(DetectorStage):
    """See the module."""

    name = "det_encoder"
    trace_case = Case(texts=3, fill=0.8)
    check_cases = (Case(texts=1, fill=1.0), Case(texts=7, fill=0.6))

    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        rows, dim, width = config.num_embs, config.llm.hidden_size, config.detector.d_model
        return PortTable(
            inputs={
                **{f"map{level}": map_shape(config, level) for level in (2, 3, 4)},
                "valid_size": ("int64", 2),
                "text_states": ("float32", 1, "T", rows, dim),
            },
            outputs={"memory": ("float32", 1, "S", width), "text": ("float32", 1, "T", width)},
        ).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        assert bucket is not None, "a detector stage has buckets"
        return DetEncoderStage(model, bucket)

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        assert bucket is not None, "a detector stage has buckets"
        maps = examples.maps(bucket, case.fill)
        return {
            **{f"map{level}": maps[level - 1] for level in (2, 3, 4)},
            "valid_size": examples.valid_size(bucket, case.fill),
            "text_states": examples.text_states(case.texts),
        }
