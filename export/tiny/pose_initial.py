"""Initial weights of the tiny keypoint decoder: the trained object decoder's, under other names.

Backbone, encoder, query selection, decoder layers and the box head are those of the object decoder.
What is new: the keypoint heads, the size tables and the projection of keypoint names.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from visionllm_edge.export.components.object_decoder import ObjectDecoder
from visionllm_edge.export.components.pose_decoder import PoseDecoder

__all__ = ["from_object_decoder", "new_parts"]

# Beginnings and parts of names, applied in turn; what nothing matches has no counterpart.
_NAMES = (
    (r"^model\.backbone\.conv_encoder\.model\.", "backbone.0."),
    (r"^backbone\.0\.embeddings\.patch_embeddings\.projection\.", "backbone.0.patch_embed.proj."),
    (r"^backbone\.0\.embeddings\.norm\.", "backbone.0.patch_embed.norm."),
    (r"^backbone\.0\.encoder\.", "backbone.0."),
    (r"^backbone\.0\.hidden_states_norms\.stage([234])\.", r"backbone.0.norm\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^model\.input_proj_vision\.", "input_proj."),
    (r"^model\.query_position_embeddings\.", "transformer.tgt_embed."),
    (r"^model\.encoder_output_bbox_embed\.", "transformer.enc_out_bbox_embed."),
    (
        r"^model\.encoder\.layers\.(\d+)\.fusion_layer\.",
        r"transformer.encoder.fusion_layers.\1.",
    ),
    (
        r"^model\.encoder\.layers\.(\d+)\.text_enhancer_layer\.",
        r"transformer.encoder.text_layers.\1.",
    ),
    (r"^model\.encoder\.layers\.(\d+)\.deformable_layer\.", r"transformer.encoder.layers.\1."),
    (r"fusion_layers\.(\d+)\.vision_param$", r"fusion_layers.\1.gam_v"),
    (r"fusion_layers\.(\d+)\.text_param$", r"fusion_layers.\1.gam_l"),
    (r"\.layer_norm_vision\.", ".layer_norm_v."),
    (r"\.layer_norm_text\.", ".layer_norm_l."),
    (r"\.(values_|out_|)vision_proj\.", r".\1v_proj."),
    (r"\.(values_|out_|)text_proj\.", r".\1l_proj."),
    (r"\.layer_norm_before\.", ".norm1."),
    (r"\.layer_norm_after\.", ".norm2."),
    (r"^(transformer\.encoder\..*)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^(transformer\.encoder\..*)\.final_layer_norm\.", r"\1.norm2."),
    (r"^model\.", "transformer."),
    (r"^(transformer\.decoder\..*)\.self_attn_layer_norm\.", r"\1.norm2."),
    (r"\.encoder_attn_text_layer_norm\.", ".catext_norm."),
    (r"\.encoder_attn_layer_norm\.", ".norm1."),
    (r"^(transformer\.decoder\..*)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.encoder_attn_text\.", ".ca_text."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"^(transformer\..*)\.fc1\.", r"\1.linear1."),
    (r"^(transformer\..*)\.fc2\.", r"\1.linear2."),
    (r"^transformer\.decoder\.layer_norm\.", "transformer.decoder.norm."),
    (r"\.reference_points_head\.", ".ref_point_head."),
    (r"^patch2query\.", "projection_llava."),
)

_NEW = ("pose_embed.", "pose_hw_embed.", "transformer.decoder.hw", "projection_kpt_llava.")


def new_parts(name: str) -> bool:
    """Whether a parameter of the keypoint decoder has no counterpart in the object decoder."""
    return name.startswith(_NEW)


@torch.no_grad()
def from_object_decoder(pose: PoseDecoder, gdino: ObjectDecoder) -> None:
    """Fill the keypoint decoder; where it has fewer layers, it takes the last encoder layers.

    Widths must be the same.

    Raises:
        AssertionError: a parameter has neither a counterpart nor a place among the new ones.
    """
    skipped = gdino.config.encoder_layers - pose.config.encoder_layers
    found = {_pose_name(name, skipped): tensor for name, tensor in gdino.state_dict().items()}
    for name in [name for name in found if name.endswith(("attn.query.weight", "attn.query.bias"))]:
        keys = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        found[name.replace(".query.", ".qkv.")] = torch.cat([found[key] for key in keys])
    for name, parameter in pose.named_parameters():
        if not new_parts(name):
            assert name in found, f"nothing for {name}"
            assert found[name].shape == parameter.shape, f"other sizes: {name}"
            parameter.copy_(found[name])
    for module in (pose.projection_kpt_llava, pose.pose_embed[0], pose.pose_hw_embed[0]):
        for part in module.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
    for head in (pose.pose_embed[0], pose.pose_hw_embed[0]):
        head.layers[-1].weight.mul_(0.1)
    decoder = pose.transformer.decoder
    for table in (decoder.hw, decoder.hw_append):
        table.weight.fill_(_logit(0.3))


def _pose_name(name: str, skipped: int) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    name = re.sub(
        r"^(transformer\.encoder\.\w+)\.(\d+)\.",
        lambda m: f"{m[1]}.{int(m[2]) - skipped}.",
        name,
    )
    return re.sub(
        r"^backbone\.0\.norm([234])\.", lambda m: f"backbone.0.norm{int(m[1]) - 1}.", name
    )


def _logit(share: float) -> float:
    return float(torch.tensor(share).logit())
