"""Configuration of a VisionLLM v2 checkpoint, read from its ``config.json``.

Every dimension of every component comes from here: the released 7B model and the tiny one run
through the same code. A field that asks for what this compiler does not build is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from visionllm_edge.export.config_diffusion import DiffusionConfig, diffusion_config
from visionllm_edge.export.config_pose import PoseConfig, pose_config
from visionllm_edge.export.config_section import Section
from visionllm_edge.export.config_swin import SwinConfig, swin_config
from visionllm_edge.export.side_files import with_side_files
from visionllm_edge.runtime.errors import CheckpointError, ConfigError

__all__ = [
    "DeploymentConfig",
    "DetectorConfig",
    "DiffusionConfig",
    "LlmConfig",
    "PoseConfig",
    "SwinConfig",
    "VisionConfig",
    "VisionLLMConfig",
    "config_from_dict",
    "llama_config",
    "read_config",
    "read_json",
    "with_queries",
    "wrong_model_type",
]

_BOTH = (False, True)
# A graph is traced with its masks' queries as an axis of any length, which one alone does not show.
_LEAST_QUERIES = 2
# Height and width of the released model's pictures, by aspect.
_BUCKETS = ((800, 800), (800, 1088), (1088, 800), (800, 1344), (1344, 800))
_VISIONLLM = {
    "supported": "Only the 7B composition (CLIP, LLaMA, Swin) is supported.",
    "wanted": "config.json of a VisionLLM v2 checkpoint",
}
_LLAMA = {
    "supported": "Only LLaMA decoders without biases and without rope scaling are supported.",
    "wanted": "config.json of a LLaMA checkpoint",
}


@dataclass(frozen=True)
class VisionConfig:
    """CLIP vision tower."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"

    @property
    def tokens_per_tile(self) -> int:
        """Image tokens of one tile."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class LlmConfig:
    """LLaMA decoder.

    Attributes:
        head_dim: width of one attention head; 0 stands for ``hidden_size / num_attention_heads``.
        tie_word_embeddings: whether the output matrix is the embedding table.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    head_dim: int = 0
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        """The usual width of a head: the heads share the hidden width."""
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)


@dataclass(frozen=True)
class DetectorConfig:
    """Object decoder (Grounding-DINO variant with a mask head).

    Attributes:
        num_queries: learnt rows of the checkpoint, one per place in the order of the proposals.
        queries: how many of the best proposals become queries; all rows unless fewer are taken
            (`with_queries`).
    """

    backbone: SwinConfig
    num_queries: int
    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_n_points: int
    decoder_n_points: int
    num_feature_levels: int
    positional_embedding_temperature: float
    mask_dim: int
    max_text_len: int
    l_hidden_size: int
    num_embs: int
    layer_norm_eps: float = 1e-5
    queries: int = 0

    def __post_init__(self) -> None:
        """Every row of the checkpoint has its query."""
        if not self.queries:
            object.__setattr__(self, "queries", self.num_queries)


@dataclass(frozen=True)
class DeploymentConfig:
    """What the official config leaves to scripts; defaults are the released model's values.

    Attributes:
        det_shortest_edge: short side of the detector's image, pixels.
        det_longest_edge: upper limit of its long side, pixels.
        det_buckets: (height, width) of the detector graphs, pixels, multiples of 32.
        pose_shortest_edge: short side of the keypoint decoder's image, pixels.
        pose_longest_edge: upper limit of its long side, pixels.
        pose_buckets: (height, width) of the keypoint decoder's graphs, pixels, multiples of 32.
        max_tiles: tiles of the LLM's image path.
        template: conversation template.
        tied_prefixes: beginnings of keys that are not stored, with the beginnings of the keys
            whose tensors they share: ``{"ip2p.sd_vae.": "sd.sd_vae."}``.
    """

    det_shortest_edge: int = 800
    det_longest_edge: int = 1333
    det_buckets: tuple[tuple[int, int], ...] = _BUCKETS
    pose_shortest_edge: int = 800
    pose_longest_edge: int = 1333
    pose_buckets: tuple[tuple[int, int], ...] = _BUCKETS
    max_tiles: int = 4
    template: str = "vicuna_v1"
    tied_prefixes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class VisionLLMConfig:
    """The whole model; decoders that the checkpoint lacks are None."""

    name: str
    vis_output_layer: int
    num_embs: int
    num_embs_gen: int
    vision: VisionConfig
    llm: LlmConfig
    detector: DetectorConfig
    deployment: DeploymentConfig
    raw: Mapping[str, Any]
    use_region_encoder: bool = False
    pose: PoseConfig | None = None
    generation: DiffusionConfig | None = None
    editing: DiffusionConfig | None = None


def read_config(folder: Path) -> VisionLLMConfig:
    """Read ``config.json`` of a checkpoint folder.

    Raises:
        CheckpointError: no such file, or not JSON.
        ConfigError: a field is missing, or asks for something that is not supported.
    """
    data = with_side_files(read_json(folder), folder)
    return config_from_dict(data, name=folder.resolve().name)


def read_json(folder: Path) -> Mapping[str, Any]:
    """The parsed ``config.json`` of a checkpoint folder.

    Raises:
        CheckpointError: no such file, or not JSON.
        ConfigError: not an object.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise CheckpointError(
            f"checkpoint '{folder}': expected a folder, found "
            f"{'a file' if folder.exists() else 'nothing'}. "
            "Give the folder that holds config.json and the weights."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise CheckpointError(
            f"checkpoint '{folder}': config.json is missing. "
            "Give the folder of a VisionLLM v2 checkpoint in its official layout, or of a LLaMA."
        ) from e
    except OSError as e:
        raise CheckpointError(f"checkpoint '{folder}': config.json: {e.strerror}.") from e
    except ValueError as e:  # not JSON, not UTF-8
        raise CheckpointError(f"checkpoint '{folder}': config.json is not valid JSON: {e}.") from e
    return Section(data, **_VISIONLLM).data


def config_from_dict(data: Mapping[str, Any], *, name: str) -> VisionLLMConfig:
    """Build the configuration from the parsed ``config.json``.

    Raises:
        ConfigError: a field is missing, or asks for something that is not supported.
    """
    top = Section(data, **_VISIONLLM)
    top.expect("model_type", "visionllmv2")
    top.expect("vl_bridge_type", "mlp2x_gelu")
    top.expect("use_pixelshuffle", False, optional=True)
    top.expect("use_llm_lora", False, optional=True)
    top.expect("use_gdino", True, optional=True)
    for flag in ("use_region_encoder", "use_unipose", "use_sd", "use_ip2p"):
        top.expect(flag, *_BOTH, optional=True)
    llm_section = top.section("llm_config")
    llm = _llm(llm_section)
    llm_section.expect("head_dim", llm.hidden_size // llm.num_attention_heads, optional=True)
    num_embs, num_embs_gen = top.integer("num_embs", 4), top.integer("num_embs_gen", 64)

    def part(flag: str, key: str) -> Section | None:
        return top.section(key) if data.get(flag) is True else None

    def branch(section: Section | None, channels: int) -> DiffusionConfig | None:
        if section is None:
            return None
        return diffusion_config(section, llm.hidden_size, num_embs_gen, in_channels=channels)

    pose, sd, ip2p = (
        part("use_unipose", "unipose_config"),
        part("use_sd", "sd_config"),
        part("use_ip2p", "ip2p_config"),
    )
    config = VisionLLMConfig(
        name=name,
        vis_output_layer=top.integer("vis_output_layer", -2, least=None),
        num_embs=num_embs,
        num_embs_gen=num_embs_gen,
        vision=_vision(top.section("vis_encoder_config")),
        llm=llm,
        detector=_detector(top.section("gdino_config"), llm.hidden_size, num_embs),
        deployment=_deployment(top.section("visionllm_edge", optional=True)),
        raw=data,
        use_region_encoder=data.get("use_region_encoder") is True,
        pose=None if pose is None else pose_config(pose, llm.hidden_size, num_embs),
        generation=branch(sd, 4),
        editing=branch(ip2p, 8),
    )
    _check(config)
    return config


def with_queries(config: VisionLLMConfig, queries: int) -> VisionLLMConfig:
    """The same model, whose object decoder follows fewer proposals.

    The best proposal gets the first learnt row, and so on; so the best `queries` of them have the
    rows that they had, and only the attention among the queries sees that the others are missing.

    Raises:
        ConfigError: more than the checkpoint has rows for, or too few for a graph to be traced.
    """
    most = config.detector.num_queries
    if not _LEAST_QUERIES <= queries <= most:
        raise ConfigError(
            f"queries: expected {_LEAST_QUERIES} to {most}, the learnt rows of checkpoint "
            f"'{config.name}' (gdino_config.num_queries), got {queries}. Ask for a number between."
        )
    return replace(config, detector=replace(config.detector, queries=queries))


def _vision(section: Section) -> VisionConfig:
    if "vision_config" in section:  # a full CLIP config keeps the tower under it
        section = section.section("vision_config")
    section.expect("model_type", "clip_vision_model", optional=True)
    section.expect("hidden_act", "quick_gelu", "gelu", optional=True)
    return VisionConfig(
        hidden_size=section.integer("hidden_size"),
        intermediate_size=section.integer("intermediate_size"),
        num_hidden_layers=section.integer("num_hidden_layers"),
        num_attention_heads=section.integer("num_attention_heads"),
        image_size=section.integer("image_size"),
        patch_size=section.integer("patch_size"),
        layer_norm_eps=section.number("layer_norm_eps", 1e-5),
        hidden_act=section.text("hidden_act", "quick_gelu"),
    )


def wrong_model_type(data: Mapping[str, Any]) -> ConfigError:
    """What to raise for a folder that is neither of the two families."""
    return ConfigError(
        "config.json: model_type: expected 'visionllmv2' or 'llama', "
        f"got {data.get('model_type')!r}. Other architectures are not supported."
    )


def llama_config(data: Mapping[str, Any]) -> LlmConfig:
    """Build the configuration of a language model of its own from its parsed ``config.json``.

    Raises:
        ConfigError: a field is missing, or asks for something that is not supported.
    """
    top = Section(data, **_LLAMA)
    top.expect("model_type", "llama")
    config = _llm(top, tied=_BOTH, rms_norm_eps=1e-6, max_position_embeddings=2048)
    _check_groups("", config)
    if config.head_dim % 2:
        raise ConfigError(
            f"config.json: head_dim: expected an even number (rotary embedding), "
            f"got {config.head_dim}."
        )
    return config


def _llm(
    section: Section,
    *,
    tied: tuple[bool, ...] = (False,),
    rms_norm_eps: float = 1e-5,
    max_position_embeddings: int = 4096,
) -> LlmConfig:
    section.expect("model_type", "llama", optional=True)
    section.expect("hidden_act", "silu", optional=True)
    section.expect("attention_bias", False, optional=True)
    section.expect("mlp_bias", False, optional=True)
    section.expect("tie_word_embeddings", *tied, optional=True)
    section.expect("rope_scaling", None, optional=True)
    rope = section.section("rope_parameters", optional=True)  # newer files keep theta in here
    rope.expect("rope_type", "default", optional=True)
    heads = section.integer("num_attention_heads")
    hidden = section.integer("hidden_size")
    return LlmConfig(
        vocab_size=section.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=section.integer("intermediate_size"),
        num_hidden_layers=section.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=section.integer("num_key_value_heads", heads),
        rms_norm_eps=section.number("rms_norm_eps", rms_norm_eps),
        rope_theta=section.number("rope_theta", rope.number("rope_theta", 10000.0)),
        max_position_embeddings=section.integer("max_position_embeddings", max_position_embeddings),
        head_dim=section.integer("head_dim", max(1, hidden // heads)),
        tie_word_embeddings=section.data.get("tie_word_embeddings") is True,
    )


def _detector(section: Section, llm_width: int, num_embs: int) -> DetectorConfig:
    section.expect("backbone", None, optional=True)
    section.expect("use_timm_backbone", False, optional=True)
    section.expect("num_feature_levels", 4)
    section.expect("two_stage", True, optional=True)
    section.expect("embedding_init_target", True, optional=True)
    section.expect("activation_function", "relu", optional=True)
    section.expect("position_embedding_type", "sine", optional=True)
    section.expect("norm", "GN", optional=True)
    d_model = section.integer("d_model")
    return DetectorConfig(
        backbone=swin_config(section.section("backbone_config")),
        num_queries=section.integer("num_queries"),
        d_model=d_model,
        encoder_layers=section.integer("encoder_layers"),
        decoder_layers=section.integer("decoder_layers"),
        encoder_ffn_dim=section.integer("encoder_ffn_dim"),
        decoder_ffn_dim=section.integer("decoder_ffn_dim"),
        encoder_attention_heads=section.integer("encoder_attention_heads"),
        decoder_attention_heads=section.integer("decoder_attention_heads"),
        encoder_n_points=section.integer("encoder_n_points"),
        decoder_n_points=section.integer("decoder_n_points"),
        num_feature_levels=4,
        positional_embedding_temperature=section.number("positional_embedding_temperature", 20.0),
        mask_dim=section.integer("mask_dim", d_model),
        max_text_len=section.integer("max_text_len", 256),
        l_hidden_size=section.integer("l_hidden_size", llm_width),
        num_embs=section.integer("num_embs", num_embs),
        layer_norm_eps=section.number("layer_norm_eps", 1e-5),
    )


def _deployment(section: Section) -> DeploymentConfig:
    default = DeploymentConfig()
    return DeploymentConfig(
        det_shortest_edge=section.integer("det_shortest_edge", default.det_shortest_edge),
        det_longest_edge=section.integer("det_longest_edge", default.det_longest_edge),
        det_buckets=section.sizes("det_buckets", default.det_buckets),
        pose_shortest_edge=section.integer("pose_shortest_edge", default.pose_shortest_edge),
        pose_longest_edge=section.integer("pose_longest_edge", default.pose_longest_edge),
        pose_buckets=section.sizes("pose_buckets", default.pose_buckets),
        max_tiles=section.integer("max_tiles", default.max_tiles),
        template=section.text("template", default.template),
        tied_prefixes=section.texts("tied_prefixes"),
    )


def _check(config: VisionLLMConfig) -> None:
    """What must hold between fields.

    Raises:
        ConfigError: naming the fields.
    """
    vision, llm, det = config.vision, config.llm, config.detector
    swin = det.backbone
    tower, decoder, backbone = "vis_encoder_config", "gdino_config", "gdino_config.backbone_config"
    _multiple(f"{tower}.image_size", vision.image_size, "patch_size", vision.patch_size)
    _multiple(
        f"{tower}.hidden_size",
        vision.hidden_size,
        "num_attention_heads",
        vision.num_attention_heads,
    )
    _multiple(
        "llm_config.hidden_size",
        llm.hidden_size,
        "2 * num_attention_heads",
        2 * llm.num_attention_heads,
    )
    _check_groups("llm_config.", llm)
    _multiple(f"{decoder}.d_model", det.d_model, "the group norms' groups", 32)
    for name, heads in (
        ("encoder_attention_heads", det.encoder_attention_heads),
        ("decoder_attention_heads", det.decoder_attention_heads),
    ):
        _multiple(f"{decoder}.d_model", det.d_model, name, heads)
    # Fusion and text attention have half the heads and half the inner width.
    heads = det.encoder_attention_heads
    _multiple(f"{decoder}.encoder_attention_heads", heads, "two", 2)
    _multiple(f"{decoder}.encoder_ffn_dim", det.encoder_ffn_dim, "encoder_attention_heads", heads)
    for stage, (width, heads) in enumerate(zip(swin.channels, swin.num_heads, strict=True)):
        _multiple(f"{backbone}.embed_dim * {2**stage}", width, f"num_heads[{stage}]", heads)
    _equal(f"{backbone}.patch_size", swin.patch_size, "the detector's stride", 4)
    _equal(f"{decoder}.l_hidden_size", det.l_hidden_size, "llm_config.hidden_size", llm.hidden_size)
    _equal(f"{decoder}.num_embs", det.num_embs, "num_embs", config.num_embs)
    _equal(f"{decoder}.mask_dim", det.mask_dim, "d_model", det.d_model)
    if not -vision.num_hidden_layers <= config.vis_output_layer <= -1:
        raise ConfigError(
            f"config.json: vis_output_layer: expected -{vision.num_hidden_layers} to -1, "
            f"got {config.vis_output_layer}."
        )
    if config.use_region_encoder:
        _equal("vis_output_layer", config.vis_output_layer, "what regions need", -2)
        _multiple(f"{tower}.patch_size", vision.patch_size, "two, which regions need", 2)
        _multiple(f"{tower}.hidden_size", vision.hidden_size, "16, which regions need", 16)
    for height, width in config.deployment.det_buckets:
        pixels = sum((height // s) * (width // s) for s in (8, 16, 32))
        pixels += -(-height // 64) * -(-width // 64)
        if pixels < det.num_queries:
            raise ConfigError(
                f"config.json: visionllm_edge.det_buckets: expected at least num_queries = "
                f"{det.num_queries} feature pixels in every bucket, got {pixels} in "
                f"{height}x{width}. Use larger buckets."
            )


def _check_groups(path: str, llm: LlmConfig) -> None:
    _multiple(
        f"{path}num_attention_heads",
        llm.num_attention_heads,
        "num_key_value_heads",
        llm.num_key_value_heads,
    )


def _multiple(field: str, value: int, of: str, divisor: int) -> None:
    if value % divisor:
        raise ConfigError(
            f"config.json: {field}: expected a multiple of {of} ({divisor}), got {value}."
        )


def _equal(field: str, value: int, other: str, wanted: int) -> None:
    if value != wanted:
        raise ConfigError(
            f"config.json: {field}: expected the same as {other} ({wanted}), got {value}."
        )
