"""Object decoder: boxes, class scores and masks for the classes that the LLM's super link names.

The module tree carries the official key names (prefix ``gdino.``). Its forward pass is cut in four
methods, one per stage of the chain:

=================  =================================================  ============================
method             in                                                 out
=================  =================================================  ============================
``backbone_maps``  pixels [B,3,H,W]                                   map1..map4 (strides 4..32)
``encode``         map2..map4, valid_size [2], text_states [B,T,N,D]  memory [B,S,d], text [B,T,d]
``decode``         memory, text, valid_size                           queries, logits, boxes
``masks``          map1, memory, queries [B,k,d]                      masks [B,k,H/4,W/4], logits
=================  =================================================  ============================

Source: VisionLLM v2, arXiv 2406.08394, section 3.1 and appendix B.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.detector_layers import MLP, DecoderLayer, EncoderLayer
from visionllm_edge.export.components.geometry import (
    Geometry,
    LevelGeometry,
    inverse_sigmoid,
)
from visionllm_edge.export.components.modules import module_list
from visionllm_edge.export.components.queries import (
    Proposals,
    best_proposals,
    box_embedding,
    flatten_levels,
    level_positions,
)
from visionllm_edge.export.components.swin import SwinBackbone
from visionllm_edge.export.config import DetectorConfig

__all__ = ["DecoderOutput", "ObjectDecoder", "Proposals"]


@dataclass(frozen=True)
class DecoderOutput:
    """One decoder layer's predictions: queries [B,Q,d], logits [B,Q,T], boxes [B,Q,4] cxcywh."""

    queries: Tensor
    logits: Tensor
    boxes: Tensor


class _ConvNorm(nn.Conv2d):
    """Bias-free convolution with its group norm stored under it."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(super().forward(x))
        return out


class _ConvEncoder(nn.Module):
    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.model = SwinBackbone(config.backbone)


class _Backbone(nn.Module):
    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.conv_encoder = _ConvEncoder(config)


class _Encoder(nn.Module):
    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.layers = module_list(EncoderLayer(config) for _ in range(config.encoder_layers))


class _Decoder(nn.Module):
    def __init__(self, config: DetectorConfig, bbox_embed: Sequence[MLP]) -> None:
        super().__init__()
        d = config.d_model
        self.layers = module_list(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.reference_points_head = MLP(2 * d, d, d)
        self.bbox_embed = bbox_embed


class _Model(nn.Module):
    def __init__(self, config: DetectorConfig, bbox_embed: Sequence[MLP]) -> None:
        super().__init__()
        d, eps = config.d_model, config.layer_norm_eps
        channels = config.backbone.channels
        self.backbone = _Backbone(config)
        self.input_proj_vision = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, d, 1), nn.GroupNorm(32, d)) for c in channels[1:]
        )
        self.input_proj_vision.append(
            nn.Sequential(nn.Conv2d(channels[-1], d, 3, stride=2, padding=1), nn.GroupNorm(32, d))
        )
        self.lateral_convs = module_list([_ConvNorm(channels[0], d, 1)])
        self.output_convs = module_list([_ConvNorm(d, d, 3)])
        self.mask_features = nn.Conv2d(d, config.mask_dim, 1)
        self.level_embed = nn.Parameter(torch.zeros(config.num_feature_levels, d))
        self.query_position_embeddings = nn.Embedding(config.num_queries, d)
        self.encoder = _Encoder(config)
        self.enc_output = nn.Linear(d, d)
        self.enc_output_norm = nn.LayerNorm(d, eps=eps)
        self.encoder_output_bbox_embed = MLP(d, d, d, 4)
        self.decoder = _Decoder(config, bbox_embed)


class ObjectDecoder(nn.Module):
    """The whole object decoder; see the module's table for its four parts."""

    def __init__(self, config: DetectorConfig) -> None:
        """Build from the config; weights are random until a checkpoint is loaded."""
        super().__init__()
        d, layers = config.d_model, config.decoder_layers
        self.config = config
        # One box head and one mask head, known under the name of every layer.
        self.bbox_embed = module_list([MLP(d, d, d, 4)] * layers)
        self.mask_embed = module_list([MLP(d, d, d, config.mask_dim)] * layers)
        self.patch2query = MLP(config.l_hidden_size, d, d, d)
        self.model = _Model(config, self.bbox_embed)

    def backbone_maps(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Pixels [B,3,H,W] (ImageNet-normalised, zero-padded) to four maps."""
        out: tuple[Tensor, ...] = self.model.backbone.conv_encoder.model(pixels)
        return out

    def levels(self, valid_size: Tensor, geometry: Geometry) -> LevelGeometry:
        """Size-dependent tensors of this model at one image size."""
        return geometry.levels(
            valid_size, self.config.d_model, self.config.positional_embedding_temperature
        )

    def encode(
        self,
        map2: Tensor,
        map3: Tensor,
        map4: Tensor,
        valid_size: Tensor,
        text_states: Tensor,
        geometry: Geometry,
    ) -> tuple[Tensor, Tensor]:
        """Fuse image and texts.

        Args:
            map2: [B,C2,H/8,W/8]; ``map3`` and ``map4`` follow at strides 16 and 32.
            map3: see map2.
            map4: see map2.
            valid_size: int64 [2], un-padded (height, width).
            text_states: [B,T,N,D], hidden states of the N super-link rows of each class.
            geometry: of the padded size.

        Returns:
            memory [B,S,d] and text [B,T,d].
        """
        level = self.levels(valid_size, geometry)
        memory = flatten_levels(self.model.input_proj_vision, (map2, map3, map4))
        positions = level_positions(level, self.model.level_embed, geometry)
        text = self.patch2query(text_states).mean(dim=2)
        for layer in self.model.encoder.layers:
            memory, text = layer(memory, text, positions, level, geometry)
        return memory, text

    def propose(self, memory: Tensor, text: Tensor, level: LevelGeometry) -> Proposals:
        """Score every pixel against every text and pick the best ``queries``."""
        return best_proposals(
            memory,
            text,
            level,
            features=lambda x: self.model.enc_output_norm(self.model.enc_output(x)),
            boxes=self.model.encoder_output_bbox_embed,
            count=self.config.queries,
        )

    def decode(
        self, memory: Tensor, text: Tensor, valid_size: Tensor, geometry: Geometry
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B,Q,d], logits [B,Q,T] and boxes [B,Q,4] (cxcywh, 0..1) of the last layer."""
        level = self.levels(valid_size, geometry)
        proposals = self.propose(memory, text, level)
        last = self.decode_layers(proposals, memory, text, level, geometry)[-1]
        return last.queries, last.logits, last.boxes

    def decode_layers(
        self,
        proposals: Proposals,
        memory: Tensor,
        text: Tensor,
        level: LevelGeometry,
        geometry: Geometry,
        *,
        every: bool = False,
    ) -> list[DecoderOutput]:
        """Run the decoder; predictions of the last layer, or of ``every`` layer for training."""
        batch, top = memory.shape[0], proposals.top
        boxes = proposals.chosen.sigmoid().detach()
        rows = self.model.query_position_embeddings.weight[: top.shape[1]]
        x = rows[None].expand(batch, -1, -1)
        ratios = level.valid_ratios.repeat(1, 2)
        decoder, outputs = self.model.decoder, []
        for i, layer in enumerate(decoder.layers):
            reference = boxes[:, :, None] * ratios
            positions = decoder.reference_points_head(
                box_embedding(reference[:, :, 0], self.config.d_model)
            )
            x = layer(x, positions, reference, memory, text, level.mask, geometry)
            final = i == len(decoder.layers) - 1
            if every or final:
                h = decoder.layer_norm(x)
                refined = (self.bbox_embed[i](h) + inverse_sigmoid(boxes)).sigmoid()
                outputs.append(DecoderOutput(h, torch.matmul(h, text.transpose(1, 2)), refined))
            if not final:
                # Refinement uses the state before the shared output norm.
                boxes = (inverse_sigmoid(boxes) + self.bbox_embed[i](x)).sigmoid().detach()
        return outputs

    def mask_pixels(self, map1: Tensor, memory: Tensor, geometry: Geometry) -> Tensor:
        """Per-pixel mask embedding [B,mask_dim,H/4,W/4] of the stride-4 map and memory level 0."""
        out: Tensor = self.model.mask_features(self._mixed_pixels(map1, memory, geometry))
        return out

    def _mixed_pixels(self, map1: Tensor, memory: Tensor, geometry: Geometry) -> Tensor:
        """[B,d,H/4,W/4], what `mask_features` reads."""
        h, w = geometry.shapes[0]
        level0 = memory[:, : h * w].transpose(1, 2).reshape(memory.shape[0], -1, h, w)
        fine = self.model.lateral_convs[0](map1)
        coarse = F.interpolate(
            level0, size=(fine.shape[-2], fine.shape[-1]), mode="bilinear", align_corners=False
        )
        return F.relu(self.model.output_convs[0](fine + coarse))

    def masks(self, map1: Tensor, memory: Tensor, queries: Tensor, geometry: Geometry) -> Tensor:
        """Mask logits [B,k,H/4,W/4] of the chosen queries [B,k,d].

        Queries are few and pixels are many: `mask_features`, a product for each pixel, is applied
        to the queries in its place, e (W x + b) as (e W) x + e b.
        """
        pixels = self._mixed_pixels(map1, memory, geometry)
        embedding, features = self.mask_embed[-1](queries), self.model.mask_features
        assert features.bias is not None, "built with one"
        folded = torch.matmul(embedding, features.weight.flatten(1))
        flat = torch.matmul(folded, pixels.flatten(2))
        flat = flat + torch.matmul(embedding, features.bias)[..., None]
        return flat.view(flat.shape[0], flat.shape[1], pixels.shape[2], pixels.shape[3])
