"""Initial weights of the tiny model: the published schemes, and what lets training start fast."""

from __future__ import annotations

import math

import torch
from torch import nn

from visionllm_edge.export.components.detector_layers import MLP, DeformableAttention
from visionllm_edge.export.components.model import VisionLLM

__all__ = ["initialise", "initialise_tables"]

_PRIOR_LOGIT = -4.0


def initialise(model: VisionLLM, seed: int) -> None:
    """Fill all weights from ``seed``."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = [model.vis_encoder, model.vl_bridge, model.llm, model.gdino]
    if model.config.use_region_encoder:
        parts.append(model.region_encoder)
    for module in parts:
        module.apply(_generic)
    for parameter in (model.vis_encoder.vision_model.embeddings.class_embedding,):
        nn.init.normal_(parameter, std=0.02)
    for table in ("det", "pose", "gen", "edit"):
        nn.init.normal_(getattr(model, f"emb_embeddings_{table}").weight, std=0.02)
    layers = model.config.llm.num_hidden_layers
    for layer in model.llm.model.layers:
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            nn.init.normal_(last.weight, std=0.04 / math.sqrt(2 * layers))
    _detector(model)


@torch.no_grad()
def initialise_tables(model: VisionLLM, seed: int) -> None:
    """Start the tables of the other decoders from the trained one of the object decoder.

    Its rows already find the words that name an object; rows of noise learned next to nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = model.emb_embeddings_det.weight
    model.emb_embeddings_pose.weight.copy_(rows)
    for table in (model.emb_embeddings_gen.weight, model.emb_embeddings_edit.weight):
        noise = torch.randn(table.shape, generator=generator)
        table.copy_(rows.repeat(len(table) // len(rows), 1) + 0.5 * rows.std() * noise)


def _generic(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_uniform_(module.weight, a=1)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def _detector(model: VisionLLM) -> None:
    gdino = model.gdino
    for module in gdino.modules():
        if isinstance(module, DeformableAttention):
            module._init_offsets()
    for name, parameter in gdino.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.trunc_normal_(parameter, std=0.02)
    nn.init.normal_(gdino.model.level_embed, std=0.1)
    nn.init.normal_(gdino.model.query_position_embeddings.weight, std=1.0)
    for head in (gdino.bbox_embed[0], gdino.model.encoder_output_bbox_embed):
        assert isinstance(head, MLP)
        nn.init.zeros_(head.layers[-1].weight)
    # The fusion's layer scale starts where it can learn within an hour, not at 1e-4.
    for layer in gdino.model.encoder.layers:
        layer.fusion_layer.vision_param.fill_(0.1)
        layer.fusion_layer.text_param.fill_(0.03)
        # The text path starts close to the identity: otherwise each layer mixes the classes, and
        # what tells them apart is a thousand times smaller at its end than at its beginning.
        layer.text_enhancer_layer.self_attn.out_proj.weight.mul_(0.1)
        layer.text_enhancer_layer.fc2.weight.mul_(0.1)
    # Class logits are plain dot products h.t; focal loss wants them to start near -4. Norm outputs
    # without bias have zero mean, so constant biases of both sides give exactly their product.
    dim = model.config.detector.d_model
    text_norm = gdino.model.encoder.layers[-1].text_enhancer_layer.layer_norm_after
    text_norm.weight.fill_(0.15)
    text_norm.bias.fill_(-0.15)
    for norm in (gdino.model.enc_output_norm, gdino.model.decoder.layer_norm):
        norm.bias.fill_(-_PRIOR_LOGIT / (0.15 * dim))
