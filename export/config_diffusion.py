"""Configuration of a diffusion branch: ``sd_config`` or ``ip2p_config`` of a checkpoint.

The official file gives the adapter's sizes and names a side repository for the rest. What that
repository says stands either in the optional objects ``unet_config``, ``vae_config``,
``text_encoder_config`` and ``scheduler_config`` of the branch's section (in the words of diffusers
and transformers), or in the folder of that name beside the checkpoint, or nowhere: then the public
values of Stable Diffusion 1.5 hold, and those of InstructPix2Pix for the editing branch.

Source: VisionLLM v2 (arXiv 2406.08394), sections 3.3 and B; the ``config.json`` files of Stable
Diffusion 1.5 and InstructPix2Pix.
"""

from __future__ import annotations

from visionllm_edge.export.config_section import Section
from visionllm_edge.export.diffusion_sizes import (
    CROSS_DOWN,
    CROSS_UP,
    PLAIN_DOWN,
    PLAIN_UP,
    AdapterConfig,
    DiffusionConfig,
    TextEncoderConfig,
    UNetConfig,
    VaeConfig,
)
from visionllm_edge.runtime.decoder_specs import SchedulerSpec
from visionllm_edge.runtime.errors import ConfigError

__all__ = [
    "AdapterConfig",
    "DiffusionConfig",
    "TextEncoderConfig",
    "UNetConfig",
    "VaeConfig",
    "diffusion_config",
]

_LATENT_CHANNELS = 4

# Schedulers by the class name of a scheduler_config.json, with the spacing of time steps that the
# runtime has for each.
_SCHEDULERS = {
    "PNDMScheduler": ("pndm", "leading"),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "linspace"),
    "DDIMScheduler": ("ddim", "leading"),
    "DPMSolverMultistepScheduler": ("dpmsolver++", "linspace"),
}

# Fields of a UNet that change the graph, with the one value that is built.
_UNET_FIXED: dict[str, tuple[object, ...]] = {
    "act_fn": ("silu",),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "mid_block_scale_factor": (1, 1.0),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1, 1.0),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "upcast_attention": (False,),
}
_VAE_FIXED: dict[str, tuple[object, ...]] = {
    "act_fn": ("silu",),
    "in_channels": (3,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "out_channels": (3,),
    "shift_factor": (None,),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}


def diffusion_config(
    section: Section, llm_width: int, num_embs_gen: int, *, in_channels: int
) -> DiffusionConfig:
    """Read ``sd_config`` or ``ip2p_config``.

    Args:
        section: the object.
        llm_width: hidden size of the language model.
        num_embs_gen: rows of the super link.
        in_channels: of the released UNet: 4 for generation, 8 for editing (latents of a source
            picture behind the noisy ones).

    Raises:
        ConfigError: a value that is not built, or sizes that do not go together; by field.
    """
    edits = in_channels > _LATENT_CHANNELS
    hidden = section.integer("sd_hidden_size", 768)
    adapter = AdapterConfig(
        llm_hidden_size=section.integer("llm_hidden_size", llm_width),
        num_states=section.integer("num_embed_tokens", num_embs_gen),
        hidden_size=hidden,
        num_queries=section.integer("num_queries", 77),
        num_encoder_layers=section.integer("num_encoder_layers", 1),
        num_decoder_layers=section.integer("num_decoder_layers", 1),
        num_heads=section.integer("num_heads", 8),
        feedforward_size=section.integer("dim_feedforward", 4 * hidden),
    )
    vae = _vae(section.section("vae_config", optional=True))
    unet = _unet(
        section.section("unet_config", optional=True),
        in_channels=vae.latent_channels * (in_channels // _LATENT_CHANNELS),
        out_channels=vae.latent_channels,
        width=hidden,
        # The editing UNet was trained on pictures of 256 pixels a side.
        sample_size=32 if edits else 64,
    )
    config = DiffusionConfig(
        adapter=adapter,
        unet=unet,
        vae=vae,
        text_encoder=_text_encoder(section.section("text_encoder_config", optional=True), hidden),
        scheduler=_scheduler(
            section.section("scheduler_config", optional=True),
            "EulerAncestralDiscreteScheduler" if edits else "PNDMScheduler",
        ),
        steps=section.integer("num_inference_steps", 100 if edits else 50),
        guidance=section.number("cfg_scale", 7.5),
        image_guidance=section.number("image_cfg_scale", 1.5) if edits else 0.0,
        edits=edits,
    )
    _check(section.path, config, llm_width, num_embs_gen)
    return config


def _unet(
    section: Section, *, in_channels: int, out_channels: int, width: int, sample_size: int
) -> UNetConfig:
    public = UNetConfig()
    for key, wanted in _UNET_FIXED.items():
        section.expect(key, *wanted, optional=True)
    section.expect("use_linear_projection", False, True, optional=True)
    section.expect("flip_sin_to_cos", False, True, optional=True)
    channels = _integers(section, "block_out_channels", public.block_out_channels)
    levels = len(channels)
    return UNetConfig(
        in_channels=section.integer("in_channels", in_channels),
        out_channels=section.integer("out_channels", out_channels),
        block_out_channels=channels,
        layers_per_block=section.integer("layers_per_block", public.layers_per_block),
        down_block_types=_names(
            section,
            "down_block_types",
            (CROSS_DOWN,) * (levels - 1) + (PLAIN_DOWN,),
            known=(CROSS_DOWN, PLAIN_DOWN),
        ),
        up_block_types=_names(
            section,
            "up_block_types",
            (PLAIN_UP,) + (CROSS_UP,) * (levels - 1),
            known=(CROSS_UP, PLAIN_UP),
        ),
        attention_head_dim=_one_or_more(section, "attention_head_dim", 8, levels),
        cross_attention_dim=section.integer("cross_attention_dim", width),
        transformer_layers_per_block=section.integer("transformer_layers_per_block", 1),
        use_linear_projection=section.data.get("use_linear_projection") is True,
        norm_num_groups=section.integer("norm_num_groups", public.norm_num_groups),
        norm_eps=section.number("norm_eps", public.norm_eps),
        flip_sin_to_cos=section.data.get("flip_sin_to_cos") is not False,
        freq_shift=section.integer("freq_shift", public.freq_shift, least=0),
        sample_size=section.integer("sample_size", sample_size),
    )


def _vae(section: Section) -> VaeConfig:
    public = VaeConfig()
    for key, wanted in _VAE_FIXED.items():
        section.expect(key, *wanted, optional=True)
    channels = _integers(section, "block_out_channels", public.block_out_channels)
    for key, kind in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        _names(section, key, (kind,) * len(channels), known=(kind,))
    section.expect("mid_block_add_attention", True, False, optional=True)
    return VaeConfig(
        latent_channels=section.integer("latent_channels", public.latent_channels),
        block_out_channels=channels,
        layers_per_block=section.integer("layers_per_block", public.layers_per_block),
        norm_num_groups=section.integer("norm_num_groups", public.norm_num_groups),
        mid_block_add_attention=section.data.get("mid_block_add_attention") is not False,
        scaling_factor=section.number("scaling_factor", public.scaling_factor),
    )


def _text_encoder(section: Section, width: int) -> TextEncoderConfig:
    public = TextEncoderConfig()
    section.expect("model_type", "clip_text_model", optional=True)
    section.expect("hidden_act", "quick_gelu", "gelu", optional=True)
    section.expect("use_attention_mask", False, optional=True)
    return TextEncoderConfig(
        vocab_size=section.integer("vocab_size", public.vocab_size, least=2),
        hidden_size=section.integer("hidden_size", width),
        intermediate_size=section.integer("intermediate_size", 4 * width),
        num_hidden_layers=section.integer("num_hidden_layers", public.num_hidden_layers),
        num_attention_heads=section.integer("num_attention_heads", public.num_attention_heads),
        max_position_embeddings=section.integer(
            "max_position_embeddings", public.max_position_embeddings
        ),
        layer_norm_eps=section.number("layer_norm_eps", public.layer_norm_eps),
        hidden_act=section.text("hidden_act", public.hidden_act),
    )


def _scheduler(section: Section, default: str) -> SchedulerSpec:
    public = SchedulerSpec("pndm")
    section.expect("_class_name", *_SCHEDULERS, optional=True)
    kind, spacing = _SCHEDULERS[section.text("_class_name", default)]
    section.expect("beta_schedule", "scaled_linear", "linear", optional=True)
    section.expect("prediction_type", "epsilon", optional=True)
    section.expect("timestep_spacing", spacing, optional=True)
    section.expect("trained_betas", None, optional=True)
    section.expect("clip_sample", False, optional=True)
    section.expect("rescale_betas_zero_snr", False, optional=True)
    section.expect("use_karras_sigmas", False, optional=True)
    section.expect("set_alpha_to_one", True, False, optional=True)
    section.expect("skip_prk_steps", True, optional=True)
    return SchedulerSpec(
        kind=kind,
        train_steps=section.integer("num_train_timesteps", public.train_steps),
        beta_start=section.number("beta_start", public.beta_start),
        beta_end=section.number("beta_end", public.beta_end),
        beta_schedule=section.text("beta_schedule", public.beta_schedule),
        steps_offset=section.integer("steps_offset", public.steps_offset, least=0),
        set_alpha_to_one=section.data.get("set_alpha_to_one") is True,
    )


def _check(path: str, config: DiffusionConfig, llm_width: int, num_embs_gen: int) -> None:
    """Refuse sizes that do not go together, before torch does it in its own words."""
    adapter, unet, vae, text = config.adapter, config.unet, config.vae, config.text_encoder
    pictures = 2 if config.edits else 1
    for field, value, other, wanted in (
        ("llm_hidden_size", adapter.llm_hidden_size, "llm_config.hidden_size", llm_width),
        ("num_embed_tokens", adapter.num_states, "num_embs_gen", num_embs_gen),
        (
            "unet_config.cross_attention_dim",
            unet.cross_attention_dim,
            f"{path}.sd_hidden_size",
            adapter.hidden_size,
        ),
        (
            "text_encoder_config.hidden_size",
            text.hidden_size,
            f"{path}.sd_hidden_size",
            adapter.hidden_size,
        ),
        (
            "unet_config.in_channels",
            unet.in_channels,
            f"{pictures} x vae_config.latent_channels",
            pictures * vae.latent_channels,
        ),
        (
            "unet_config.out_channels",
            unet.out_channels,
            "vae_config.latent_channels",
            vae.latent_channels,
        ),
        (
            "unet_config.down_block_types",
            len(unet.down_block_types),
            "the levels of block_out_channels",
            len(unet.block_out_channels),
        ),
        (
            "unet_config.up_block_types",
            len(unet.up_block_types),
            "the levels of block_out_channels",
            len(unet.block_out_channels),
        ),
    ):
        if value != wanted:
            raise ConfigError(
                f"config.json: {path}.{field}: expected the same as {other} ({wanted}), "
                f"got {value}."
            )
    multiples = [
        ("sd_hidden_size", adapter.hidden_size, "num_heads", adapter.num_heads),
        ("sd_hidden_size", text.hidden_size, "the text heads", text.num_attention_heads),
    ]
    for heads, channels in zip(unet.attention_head_dim, unet.block_out_channels, strict=True):
        multiples.append(("unet_config.block_out_channels", channels, "attention_head_dim", heads))
    for name, part in (("unet_config", unet), ("vae_config", vae)):
        for channels in part.block_out_channels:
            multiples.append(
                (f"{name}.block_out_channels", channels, "norm_num_groups", part.norm_num_groups)
            )
    for field, value, other, divisor in multiples:
        if value % divisor:
            raise ConfigError(
                f"config.json: {path}.{field}: expected multiples of {other} ({divisor}), "
                f"got {value}."
            )
    if adapter.num_queries > text.max_position_embeddings:
        raise ConfigError(
            f"config.json: {path}.num_queries: expected at most text_encoder_config."
            f"max_position_embeddings = {text.max_position_embeddings} (the empty prompt has as "
            f"many rows as the condition), got {adapter.num_queries}."
        )


def _integers(section: Section, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """A list of one or more positive integers."""
    got = section.data.get(key)
    if got is None:
        return default
    return section.integers(key, len(got) if isinstance(got, list) and got else 1)


def _one_or_more(section: Section, key: str, default: int, count: int) -> tuple[int, ...]:
    """One integer for all levels, or a list with one for each."""
    if isinstance(section.data.get(key), list):
        return section.integers(key, count)
    return (section.integer(key, default),) * count


def _names(
    section: Section, key: str, default: tuple[str, ...], *, known: tuple[str, ...]
) -> tuple[str, ...]:
    """A list of known names."""
    got = section.data.get(key)
    if got is None:
        return default
    if not isinstance(got, list) or any(name not in known for name in got):
        raise ConfigError(
            f"config.json: {section.path}.{key}: expected a list of "
            f"{' or '.join(repr(name) for name in known)}, got {got!r}. "
            "Only the blocks of Stable Diffusion 1.5 are supported."
        )
    return tuple(got)
