"""Configuration of the keypoint decoder, read from ``unipose_config``.

The official section is a flat object with the field names of X-Pose (arXiv 2310.08530); a field
that is absent has the released model's value. Three fields are this package's own:
``backbone_config`` for a Swin of another size, ``num_instances`` and ``mask_mode``.
"""

from __future__ import annotations

from dataclasses import dataclass

from visionllm_edge.export.config_section import Section
from visionllm_edge.export.config_swin import SWIN_TINY, SwinConfig, swin_config
from visionllm_edge.runtime.errors import ConfigError

__all__ = ["MASK_MODES", "NAMED_SLOTS", "PoseConfig", "pose_config"]

MASK_MODES = ("block", "reference68")
"""Who sees whom among the keypoint tokens: the intended mask, or the reference code's slip."""

NAMED_SLOTS = 17
"""Rows of the first of the two tables of initial keypoint sizes, whatever the widths."""


@dataclass(frozen=True)
class PoseConfig:
    """Keypoint decoder (UniPose variant without its text encoder).

    Attributes:
        backbone: Swin; its first stage is not output.
        num_queries: proposals that the box layers refine.
        num_instances: objects that get keypoints, the best of the queries.
        max_keypoints: slots for keypoint names.
        box_layers: decoder layers before the instances are chosen.
        decoder_layers: all decoder layers.
        mask_mode: one of `MASK_MODES`.
    """

    backbone: SwinConfig
    num_queries: int
    num_instances: int
    max_keypoints: int
    box_layers: int
    decoder_layers: int
    encoder_layers: int
    d_model: int
    ffn_dim: int
    heads: int
    encoder_n_points: int
    decoder_n_points: int
    positional_embedding_temperature: float
    l_hidden_size: int
    num_embs: int
    num_feature_levels: int = 4
    mask_mode: str = MASK_MODES[0]
    layer_norm_eps: float = 1e-5


def pose_config(section: Section, llm_width: int, num_embs: int) -> PoseConfig:
    """Read ``unipose_config``.

    Args:
        section: of ``config.json``.
        llm_width: width of the language model's hidden states.
        num_embs: super-link rows of one name.

    Raises:
        ConfigError: a field asks for something that is not supported, or fields disagree.
    """
    section.expect("model_type", "unipose", optional=True)
    section.expect("num_feature_levels", 4, optional=True)
    section.expect("return_interm_indices", [1, 2, 3], optional=True)
    section.expect("two_stage_type", "standard", optional=True)
    section.expect("transformer_activation", "relu", optional=True)
    section.expect("pre_norm", False, optional=True)
    for name in (
        "embed_init_tgt",
        "use_text_enhancer",
        "use_fusion_layer",
        "use_text_cross_attention",
    ):
        section.expect(name, True, optional=True)
    section.expect("mask_mode", *MASK_MODES, optional=True)
    height = section.number("pe_temperatureH", 20.0)
    section.expect("pe_temperatureW", int(height), height, optional=True)
    if "backbone_config" in section:
        backbone = swin_config(section.section("backbone_config"))
    else:
        section.expect("backbone", "swin_T_224_1k", optional=True)
        backbone = SWIN_TINY
    config = PoseConfig(
        backbone=backbone,
        num_queries=section.integer("num_queries", 900),
        num_instances=section.integer("num_instances", 50),
        max_keypoints=section.integer("num_body_points", 68),
        box_layers=section.integer("num_box_decoder_layers", 2),
        decoder_layers=section.integer("dec_layers", 6),
        encoder_layers=section.integer("enc_layers", 6),
        d_model=section.integer("hidden_dim", 256),
        ffn_dim=section.integer("dim_feedforward", 2048),
        heads=section.integer("nheads", 8),
        encoder_n_points=section.integer("enc_n_points", 4),
        decoder_n_points=section.integer("dec_n_points", 4),
        positional_embedding_temperature=height,
        l_hidden_size=section.integer("l_hidden_size", llm_width),
        num_embs=num_embs,
        mask_mode=section.text("mask_mode", MASK_MODES[0]),
    )
    _check(config, section.path, llm_width)
    return config


def _check(config: PoseConfig, path: str, llm_width: int) -> None:
    """What must hold between the fields."""

    def require(ok: bool, field: str, expected: str, got: object) -> None:
        if not ok:
            raise ConfigError(f"config.json: {path}.{field}: expected {expected}, got {got}.")

    c, swin = config, config.backbone
    require(
        c.decoder_layers > c.box_layers,
        "dec_layers",
        f"more than num_box_decoder_layers ({c.box_layers})",
        c.decoder_layers,
    )
    require(
        c.num_instances <= c.num_queries,
        "num_instances",
        f"at most num_queries ({c.num_queries})",
        c.num_instances,
    )
    require(
        c.max_keypoints > NAMED_SLOTS,
        "num_body_points",
        f"more than {NAMED_SLOTS} (rows of the first size table)",
        c.max_keypoints,
    )
    require(c.d_model % 32 == 0, "hidden_dim", "a multiple of 32 (group norm)", c.d_model)
    require(
        c.heads % 2 == 0 and c.d_model % c.heads == 0,
        "nheads",
        f"an even divisor of hidden_dim ({c.d_model})",
        c.heads,
    )
    require(
        c.ffn_dim % c.heads == 0,
        "dim_feedforward",
        f"a multiple of nheads ({c.heads})",
        c.ffn_dim,
    )
    require(
        c.l_hidden_size == llm_width,
        "l_hidden_size",
        f"the language model's hidden_size ({llm_width})",
        c.l_hidden_size,
    )
    require(swin.patch_size == 4, "backbone_config.patch_size", "4 (the stride)", swin.patch_size)
    for width, heads in zip(swin.channels, swin.num_heads, strict=True):
        require(
            width % heads == 0,
            "backbone_config.num_heads",
            f"divisors of the stages' widths {swin.channels}",
            swin.num_heads,
        )
