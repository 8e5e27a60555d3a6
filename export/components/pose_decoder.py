"""Keypoint decoder: objects of any named class with keypoints of any names.

The module tree carries the official key names (prefix ``unipose.``). Its forward pass is cut in
four methods, one per stage of the chain; I instances, No object classes, K keypoint names:

=================  ===============================================  ===============================
method             in                                               out
=================  ===============================================  ===============================
``backbone_maps``  pixels [B,3,H,W]                                 map2..map4 (strides 8..32)
``encode``         map2..map4, valid_size, object_states            memory [B,S,d], text [B,No,d]
``instances``      memory, text, valid_size                         instances [B,I,d], boxes
``keypoints``      memory, text, instances, boxes, keypoint_states  logits, boxes, keypoints
=================  ===============================================  ===============================

A keypoint token sees the tokens of its own instance only, so self-attention is batched over
instances and unused slots are not there at all. ``mask_mode`` "reference68" instead repeats a slip
of the reference code, for parity with published numbers (see `slip_mask`).

Sources: VisionLLM v2, arXiv 2406.08394, section 3.1 and appendix B.2; X-Pose, arXiv 2310.08530.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visionllm_edge.export.components.detector_layers import MLP, Surroundings
from visionllm_edge.export.components.geometry import Geometry, LevelGeometry, inverse_sigmoid
from visionllm_edge.export.components.modules import module_list
from visionllm_edge.export.components.pose_layers import PoseDecoderLayer, PoseEncoder
from visionllm_edge.export.components.queries import (
    Proposals,
    best_proposals,
    box_embedding,
    flatten_levels,
    level_positions,
)
from visionllm_edge.export.components.swin_classic import ClassicSwin
from visionllm_edge.export.config_pose import NAMED_SLOTS, PoseConfig

__all__ = ["BoxOutput", "PoseDecoder", "PoseOutput", "slip_mask"]

_EPS = 1e-3
"""Where the inverse sigmoid is cut, everywhere in this decoder; the object decoder has 1e-5."""


@dataclass(frozen=True)
class BoxOutput:
    """One box layer's result.

    Attributes:
        queries: [B,Q,d] before the output norm.
        logits: [B,Q,No] of these.
        boxes: [B,Q,4] cxcywh, refined from these.
        normed_logits: [B,Q,No] behind the output norm; only for training.
        normed_boxes: [B,Q,4] behind the output norm; only for training.
    """

    queries: Tensor
    logits: Tensor
    boxes: Tensor
    normed_logits: Tensor
    normed_boxes: Tensor


@dataclass(frozen=True)
class PoseOutput:
    """One keypoint layer's predictions: logits [B,I,No], boxes [B,I,4], keypoints [B,I,K,2]."""

    logits: Tensor
    boxes: Tensor
    keypoints: Tensor


class _Decoder(nn.Module):
    def __init__(
        self, config: PoseConfig, bbox: Sequence[MLP], pose: Sequence[MLP], size: Sequence[MLP]
    ) -> None:
        super().__init__()
        d = config.d_model
        self.layers = module_list(PoseDecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.ref_point_head = MLP(2 * d, d, d)
        self.hw = nn.Embedding(NAMED_SLOTS, 2)
        self.hw_append = nn.Embedding(config.max_keypoints - NAMED_SLOTS, 2)
        self.bbox_embed, self.pose_embed, self.pose_hw_embed = bbox, pose, size


class _Transformer(nn.Module):
    def __init__(self, config: PoseConfig, decoder: _Decoder) -> None:
        super().__init__()
        d = config.d_model
        self.level_embed = nn.Parameter(torch.zeros(config.num_feature_levels, d))
        self.tgt_embed = nn.Embedding(config.num_queries, d)
        self.encoder = PoseEncoder(config)
        self.enc_output = nn.Linear(d, d)
        self.enc_output_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.enc_out_bbox_embed = MLP(d, d, d, 4)
        self.decoder = decoder


class PoseDecoder(nn.Module):
    """The whole keypoint decoder; see the module's table for its four parts."""

    def __init__(self, config: PoseConfig) -> None:
        """Build from the config; weights are random until a checkpoint is loaded."""
        super().__init__()
        d, channels = config.d_model, config.backbone.channels
        self.config = config
        self.backbone = module_list([ClassicSwin(config.backbone)])
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, d, 1), nn.GroupNorm(32, d)) for c in channels[1:]
        )
        self.input_proj.append(
            nn.Sequential(nn.Conv2d(channels[-1], d, 3, stride=2, padding=1), nn.GroupNorm(32, d))
        )
        # One head of each kind, known under the name of every layer.
        layers = config.decoder_layers
        late = layers - config.box_layers
        self.bbox_embed = module_list([MLP(d, d, d, 4)] * layers)
        self.pose_embed = module_list([MLP(d, d, d, 2)] * (late + 1))
        self.pose_hw_embed = module_list([MLP(d, d, d, 2)] * late)
        decoder = _Decoder(config, self.bbox_embed, self.pose_embed, self.pose_hw_embed)
        self.transformer = _Transformer(config, decoder)
        self.projection_llava = MLP(config.l_hidden_size, d, d, d)
        self.projection_kpt_llava = MLP(config.l_hidden_size, d, d, d)

    def backbone_maps(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels [B,3,H,W] (ImageNet-normalised, zero-padded) to three maps."""
        map2, map3, map4 = self.backbone[0](pixels)
        return map2, map3, map4

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
        object_states: Tensor,
        geometry: Geometry,
    ) -> tuple[Tensor, Tensor]:
        """Fuse image and object classes.

        Args:
            map2: [B,C2,H/8,W/8]; ``map3`` and ``map4`` follow at strides 16 and 32.
            map3: see map2.
            map4: see map2.
            valid_size: int64 [2], un-padded (height, width).
            object_states: [B,No,N,D], hidden states of the N super-link rows of each class.
            geometry: of the padded size.

        Returns:
            memory [B,S,d] and text [B,No,d].
        """
        level = self.levels(valid_size, geometry)
        memory = flatten_levels(self.input_proj, (map2, map3, map4))
        positions = level_positions(level, self.transformer.level_embed, geometry)
        text = self.projection_llava(object_states).mean(dim=2)
        out: tuple[Tensor, Tensor] = self.transformer.encoder(
            memory, text, positions, level, geometry
        )
        return out

    def propose(self, memory: Tensor, text: Tensor, level: LevelGeometry) -> Proposals:
        """Score every pixel against every class and pick the best ``num_queries``."""
        top = self.transformer
        return best_proposals(
            memory,
            text,
            level,
            features=lambda x: top.enc_output_norm(top.enc_output(x)),
            boxes=top.enc_out_bbox_embed,
            count=self.config.num_queries,
        )

    def instances(
        self, memory: Tensor, text: Tensor, valid_size: Tensor, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        """The best instances [B,I,d], before the output norm, and their boxes [B,I,4] cxcywh."""
        level = self.levels(valid_size, geometry)
        proposals = self.propose(memory, text, level)
        return self.best_instances(self.box_layers(proposals, memory, text, level, geometry)[-1])

    def box_layers(
        self,
        proposals: Proposals,
        memory: Tensor,
        text: Tensor,
        level: LevelGeometry,
        geometry: Geometry,
    ) -> list[BoxOutput]:
        """Run the box layers; the result of each."""
        boxes = proposals.chosen.sigmoid().detach()
        x = self.transformer.tgt_embed.weight[None].expand(memory.shape[0], -1, -1)
        around = Surroundings(memory, text, level.mask, geometry)
        decoder, outputs = self.transformer.decoder, []
        for i in range(self.config.box_layers):
            x = decoder.layers[i](x, *self._places(boxes, level), around)
            h, start = decoder.norm(x), inverse_sigmoid(boxes, _EPS)
            refined = (start + self.bbox_embed[i](x)).sigmoid()
            outputs.append(
                BoxOutput(
                    queries=x,
                    logits=torch.matmul(x, text.transpose(1, 2)),
                    boxes=refined,
                    normed_logits=torch.matmul(h, text.transpose(1, 2)),
                    normed_boxes=(start + self.bbox_embed[i](h)).sigmoid(),
                )
            )
            boxes = refined.detach()
        return outputs

    def best_instances(self, found: BoxOutput) -> tuple[Tensor, Tensor]:
        """Queries [B,I,d] and boxes [B,I,4] of the best ``num_instances``, best first."""
        top = torch.topk(found.logits.amax(dim=-1), self.config.num_instances, dim=1).indices
        queries = torch.gather(
            found.queries, 1, top[..., None].expand(-1, -1, found.queries.shape[-1])
        )
        return queries, torch.gather(found.boxes, 1, top[..., None].expand(-1, -1, 4))

    def keypoints(
        self,
        memory: Tensor,
        text: Tensor,
        instances: Tensor,
        boxes: Tensor,
        keypoint_states: Tensor,
        valid_size: Tensor,
        geometry: Geometry,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions of the last layer.

        Args:
            memory: [B,S,d].
            text: [B,No,d].
            instances: [B,I,d].
            boxes: [B,I,4] cxcywh.
            keypoint_states: [B,K,N,D], hidden states of the N super-link rows of each name; K is at
                most ``max_keypoints``.
            valid_size: int64 [2].
            geometry: of the padded size.

        Returns:
            logits [B,I,No]; boxes [B,I,4] cxcywh and keypoints [B,I,K,2] (x, y), both in 0..1 of
            the un-padded picture.

        Raises:
            ValueError: no name, or more names than slots.
        """
        used, slots = keypoint_states.shape[1], self.config.max_keypoints
        # Not while tracing: the graph's own table has no row for a name too many.
        if not torch.compiler.is_compiling() and not 1 <= used <= slots:
            raise ValueError(f"keypoint decoder: expected 1 to {slots} keypoint names, got {used}")
        level = self.levels(valid_size, geometry)
        names = self.projection_kpt_llava(keypoint_states).mean(dim=2)
        around = Surroundings(memory, text, level.mask, geometry)
        last = self.keypoint_layers(instances, boxes, names, around, level)[-1]
        return last.logits, last.boxes, last.keypoints

    def keypoint_layers(
        self,
        instances: Tensor,
        boxes: Tensor,
        names: Tensor,
        around: Surroundings,
        level: LevelGeometry,
        *,
        every: bool = False,
    ) -> list[PoseOutput]:
        """Run the keypoint layers.

        Args:
            instances: [B,I,d].
            boxes: [B,I,4].
            names: [B,K,d], projected.
            around: what the layers look at.
            level: sizes.
            every: predictions before the first layer and of every layer, for training; else of the
                last alone.
        """
        count, used = instances.shape[1], names.shape[1]
        groups, seen = count, None
        if self.config.mask_mode == "reference68":
            slots = self.config.max_keypoints
            groups, seen = 1, slip_mask(count, slots, used)
            index = torch.arange(slots)
            names = names[:, index.clamp(max=used - 1)] * (index < used).to(names)[:, None]
        x, boxes = self._tokens(instances, boxes, names)
        decoder, text = self.transformer.decoder, around.text
        outputs = [PoseOutput(text, boxes[:, :, 0], boxes[:, :, 1:, :2])] if every else []
        first, end = self.config.box_layers, self.config.decoder_layers
        for i in range(first, end):
            boxes = boxes.detach()
            places = self._places(boxes.flatten(1, 2), level)
            flat = decoder.layers[i](x.flatten(1, 2), *places, around, groups=groups, seen=seen)
            x = flat.reshape(x.shape)
            if every or i == end - 1:
                h = decoder.norm(x)
                refined = self._refined(boxes, h, i)
                logits = torch.matmul(h[:, :, 0], text.transpose(1, 2))
                points = refined[:, :, 1 + torch.arange(used), :2]
                outputs.append(PoseOutput(logits, refined[:, :, 0], points))
            if i < end - 1:
                # Refinement uses the state before the shared output norm.
                boxes = self._refined(boxes, x, i)
        return outputs

    def _tokens(self, instances: Tensor, boxes: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B,I,1+K,d] and where they look [B,I,1+K,4]: the box, then its keypoints."""
        batch, count = instances.shape[:2]
        used = names.shape[1]
        decoder = self.transformer.decoder
        contents = names[:, None].expand(-1, count, -1, -1)
        start = inverse_sigmoid(boxes[:, :, None, :2], _EPS)
        centre = (start + self.pose_embed[0](names)[:, None]).sigmoid()
        # By place in the list of names, not by meaning.
        table = torch.cat([decoder.hw.weight, decoder.hw_append.weight])[torch.arange(used)]
        size = boxes[:, :, None, 2:] * table.sigmoid()[None, None]
        places = torch.cat([centre, size.expand(batch, -1, -1, -1)], dim=-1)
        return (
            torch.cat([instances[:, :, None], contents], dim=2),
            torch.cat([boxes[:, :, None], places], dim=2),
        )

    def _refined(self, boxes: Tensor, x: Tensor, layer: int) -> Tensor:
        """Boxes [B,I,1+K,4] moved by what the heads of a layer read in the states x."""
        late = layer - self.config.box_layers
        points = x[:, :, 1:]
        moves = [self.pose_embed[late + 1](points), self.pose_hw_embed[late](points)]
        step = torch.cat([self.bbox_embed[layer](x[:, :, :1]), torch.cat(moves, dim=-1)], dim=2)
        return (inverse_sigmoid(boxes, _EPS) + step).sigmoid()

    def _places(self, boxes: Tensor, level: LevelGeometry) -> tuple[Tensor, Tensor]:
        """Position embedding [B,Q,d] and reference boxes [B,Q,L,4] in padded units."""
        reference = boxes[:, :, None] * level.valid_ratios.repeat(1, 2)
        embedding = box_embedding(reference[:, :, 0], self.config.d_model)
        positions: Tensor = self.transformer.decoder.ref_point_head(embedding)
        return positions, reference


def slip_mask(instances: int, slots: int, used: int) -> Tensor:
    """Who sees whom in the reference's inference code, bool [I*(1+slots), I*(1+slots)].

    Intended is one block of 1 + slots tokens per instance, in which the box and the used slots see
    each other, and the unused slots each other. The reference forbids other instances in groups of
    ``slots`` rows instead of ``1 + slots``, and then writes the right blocks: what a group has
    outside its rows' blocks stays visible, as does everything for the rows behind the last group.

    Args:
        instances: I.
        slots: keypoints of one instance, unused ones included.
        used: how many of them have a name.
    """
    token = torch.arange(instances * (1 + slots))
    block, place = token // (1 + slots), token % (1 + slots)
    # Nothing is forbidden behind the last group: its rows see all that follows.
    group = (token // slots).clamp(max=instances - 1)
    same_block = block[:, None] == block[None]
    real = place <= used
    intended = real[:, None] == real[None]
    left_open = (group[:, None] == group[None]) | (token >= instances * slots)[:, None]
    return (same_block & intended) | (~same_block & left_open)
