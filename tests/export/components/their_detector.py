"""transformers' Grounding DINO with our weights: an oracle for everything but the mask branch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection
from transformers import SwinConfig as TheirSwinConfig
from transformers.models.grounding_dino import modeling_grounding_dino

from visionllm_edge.export.components.object_decoder import ObjectDecoder
from visionllm_edge.export.config import DetectorConfig, SwinConfig

CONFIG = DetectorConfig(
    backbone=SwinConfig(embed_dim=8, depths=(1, 1, 1, 2), num_heads=(1, 2, 2, 4), window_size=7),
    num_queries=30,
    d_model=32,
    encoder_layers=2,
    decoder_layers=3,
    encoder_ffn_dim=48,
    decoder_ffn_dim=56,
    encoder_attention_heads=4,
    decoder_attention_heads=8,
    encoder_n_points=2,
    decoder_n_points=3,
    num_feature_levels=4,
    positional_embedding_temperature=20.0,
    mask_dim=32,
    max_text_len=256,
    l_hidden_size=24,
    num_embs=4,
)

# What VisionLLM v2 has and Grounding DINO has not: masks, the text projection, and the stage at
# stride 4 as an output.
_OURS_ONLY = (
    "mask_embed.",
    "patch2query.",
    "model.lateral_convs.",
    "model.output_convs.",
    "model.mask_features.",
    "model.backbone.conv_encoder.model.hidden_states_norms.stage1.",
)
_THEIRS_ONLY = ("model.text_backbone.", "model.text_projection.", "swin.layernorm.")


def their_detector(ours: ObjectDecoder) -> Any:
    """Their model, loaded from our state dict under the official names."""
    config = ours.config
    swin = config.backbone
    state = {}
    for name, tensor in ours.state_dict().items():
        if name.startswith(_OURS_ONLY):
            continue
        stem, _, leaf = name.rpartition("in_proj_")
        if leaf in ("weight", "bias"):
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                state[f"{stem}{part}.{leaf}"] = rows.clone()
        else:
            state[name] = tensor.clone()
    backbone: dict[str, Any] = {
        "embed_dim": swin.embed_dim,
        "depths": list(swin.depths),
        "num_heads": list(swin.num_heads),
        "window_size": swin.window_size,
        "drop_path_rate": 0.0,
        "out_features": ["stage2", "stage3", "stage4"],
    }
    loaded: Any = GroundingDinoForObjectDetection.from_pretrained(
        None,
        config=GroundingDinoConfig(
            backbone_config=TheirSwinConfig(**backbone),
            text_config=BertConfig(
                vocab_size=4,
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                intermediate_size=8,
            ),
            num_queries=config.num_queries,
            d_model=config.d_model,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            encoder_ffn_dim=config.encoder_ffn_dim,
            decoder_ffn_dim=config.decoder_ffn_dim,
            encoder_attention_heads=config.encoder_attention_heads,
            decoder_attention_heads=config.decoder_attention_heads,
            encoder_n_points=config.encoder_n_points,
            decoder_n_points=config.decoder_n_points,
            positional_embedding_temperature=int(config.positional_embedding_temperature),
            max_text_len=config.max_text_len,
            two_stage=True,
            embedding_init_target=True,
            decoder_bbox_embed_share=True,
        ),
        state_dict=state,
        attn_implementation="eager",
        output_loading_info=True,
    )
    model, info = loaded
    missing = {n for n in info["missing_keys"] if not any(part in n for part in _THEIRS_ONLY)}
    assert missing == set()
    assert not info["unexpected_keys"]
    return model.eval()


class _Text(nn.Module):
    """Stands for the text encoder: gives the projected texts, whatever the ids."""

    def __init__(self, text: Tensor) -> None:
        super().__init__()
        self.text = text

    def forward(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.text)


def _one_phrase_of_all(ids: Tensor, special_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Every text sees every other; positions count from 0."""
    del special_tokens
    batch, count = ids.shape
    mask = torch.ones(batch, count, count, dtype=torch.bool)
    return mask, torch.arange(count).expand(batch, -1)


@contextmanager
def texts(model: Any, text: Tensor) -> Iterator[Tensor]:
    """Give the model texts [B,T,d] instead of words; yields input ids of the right shape."""
    model.model.text_backbone = _Text(text)
    model.model.text_projection = nn.Identity()
    with mock.patch.object(
        modeling_grounding_dino,
        "generate_masks_with_special_tokens_and_transfer_map",
        _one_phrase_of_all,
    ):
        yield torch.ones(text.shape[:2], dtype=torch.int64)
