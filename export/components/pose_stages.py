"""The four stages of the keypoint decoder as plain wrappers: tensors in and out, one image size."""

from __future__ import annotations

from torch import Tensor, nn

from visionllm_edge.export.components.geometry import Geometry
from visionllm_edge.export.components.pose_decoder import PoseDecoder

__all__ = ["PoseBackboneStage", "PoseBoxesStage", "PoseEncoderStage", "PoseKeypointsStage"]


class _PoseStage(nn.Module):
    def __init__(self, unipose: PoseDecoder, bucket: tuple[int, int]) -> None:
        super().__init__()
        self.unipose = unipose
        self.geometry = Geometry(*bucket)


class PoseBackboneStage(_PoseStage):
    """Stage ``pose_backbone``: pixels [1,3,H,W] to map2..map4."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        return self.unipose.backbone_maps(pixels)


class PoseEncoderStage(_PoseStage):
    """Stage ``pose_encoder``: maps, valid_size [2], object_states [1,No,N,D] to memory, text."""

    def forward(
        self, map2: Tensor, map3: Tensor, map4: Tensor, valid_size: Tensor, object_states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        return self.unipose.encode(map2, map3, map4, valid_size, object_states, self.geometry)


class PoseBoxesStage(_PoseStage):
    """Stage ``pose_boxes``: memory, text, valid_size to instances [1,I,d] and boxes [1,I,4]."""

    def forward(self, memory: Tensor, text: Tensor, valid_size: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return self.unipose.instances(memory, text, valid_size, self.geometry)


class PoseKeypointsStage(_PoseStage):
    """Stage ``pose_keypoints``: instances, keypoint_states [1,K,N,D] to logits, boxes, points."""

    def forward(
        self,
        memory: Tensor,
        text: Tensor,
        instances: Tensor,
        boxes: Tensor,
        keypoint_states: Tensor,
        valid_size: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        return self.unipose.keypoints(
            memory, text, instances, boxes, keypoint_states, valid_size, self.geometry
        )
