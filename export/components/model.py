"""VisionLLM v2 as one module tree with the official key names, and its stages as plain wrappers.

The tree is what a checkpoint loads into; the stage wrappers (plain tensors in and out) are what
gets traced. Training and the parity gate use the same tree.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visionllm_edge.export.components.diffusion import DiffusionBranch
from visionllm_edge.export.components.geometry import Geometry
from visionllm_edge.export.components.llm_decoder import Llama
from visionllm_edge.export.components.object_decoder import ObjectDecoder
from visionllm_edge.export.components.pose_decoder import PoseDecoder
from visionllm_edge.export.components.region_encoder import RegionEncoder
from visionllm_edge.export.components.vision_encoder import VisionTower, make_bridge
from visionllm_edge.export.config import VisionLLMConfig

__all__ = [
    "DetBackboneStage",
    "DetDecoderStage",
    "DetEncoderStage",
    "DetMasksStage",
    "VisionLLM",
    "meta_model",
]


class VisionLLM(nn.Module):
    """The parts that this compiler builds, under their official names."""

    def __init__(self, config: VisionLLMConfig) -> None:
        """Build from the config; weights are random until a checkpoint is loaded."""
        super().__init__()
        self.config = config
        dim = config.llm.hidden_size
        self.vis_encoder = VisionTower(config.vision, config.vis_output_layer)
        self.vl_bridge = make_bridge(config.vision.hidden_size, dim)
        self.llm = Llama(config.llm)
        self.emb_embeddings_det = nn.Embedding(config.num_embs, dim)
        self.emb_embeddings_pose = nn.Embedding(config.num_embs, dim)
        self.emb_embeddings_gen = nn.Embedding(config.num_embs_gen, dim)
        self.emb_embeddings_edit = nn.Embedding(config.num_embs_gen, dim)
        self.gdino = ObjectDecoder(config.detector)
        if config.use_region_encoder:
            self.region_encoder = RegionEncoder(config)
        if config.pose is not None:
            self.unipose = PoseDecoder(config.pose)
        if config.generation is not None:
            self.sd = DiffusionBranch(config.generation)
        if config.editing is not None:
            self.ip2p = DiffusionBranch(config.editing)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Tiles [n,3,I,I] to image tokens [n,P,D]."""
        out: Tensor = self.vl_bridge(self.vis_encoder(pixels))
        return out


class _DetectorStage(nn.Module):
    def __init__(self, model: VisionLLM, bucket: tuple[int, int]) -> None:
        super().__init__()
        self.gdino = model.gdino
        self.geometry = Geometry(*bucket)


class DetBackboneStage(_DetectorStage):
    """Stage ``det_backbone``: pixels [1,3,H,W] to map1..map4."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return self.gdino.backbone_maps(pixels)


class DetEncoderStage(_DetectorStage):
    """Stage ``det_encoder``: maps, valid_size [2], text_states [1,T,N,D] to memory and text."""

    def forward(
        self, map2: Tensor, map3: Tensor, map4: Tensor, valid_size: Tensor, text_states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        return self.gdino.encode(map2, map3, map4, valid_size, text_states, self.geometry)


class DetDecoderStage(_DetectorStage):
    """Stage ``det_decoder``: memory, text, valid_size to queries, logits and boxes."""

    def forward(
        self, memory: Tensor, text: Tensor, valid_size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        return self.gdino.decode(memory, text, valid_size, self.geometry)


class DetMasksStage(_DetectorStage):
    """Stage ``det_masks``: map1, memory, queries [1,k,d] to masks [1,k,H/4,W/4]."""

    def forward(self, map1: Tensor, memory: Tensor, queries: Tensor) -> Tensor:
        """See the class."""
        return self.gdino.masks(map1, memory, queries, self.geometry)


def meta_model(config: VisionLLMConfig) -> VisionLLM:
    """The model's structure on the meta device: names and shapes, nothing allocated."""
    with torch.device("meta"):
        return VisionLLM(config)
