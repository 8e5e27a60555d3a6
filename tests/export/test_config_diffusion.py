"""Sections of the two diffusion branches: public defaults, own sizes, refusals by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.export.official_keys import TINY
from tests.export.small_diffusion import branch_config, diffusion_section, with_diffusion
from tests.export.synthetic import config_for, write_config
from visionllm_edge.export.config import config_from_dict, read_config
from visionllm_edge.export.config_diffusion import diffusion_config
from visionllm_edge.export.config_section import Section
from visionllm_edge.export.diffusion_sizes import (
    AdapterConfig,
    TextEncoderConfig,
    UNetConfig,
    VaeConfig,
)
from visionllm_edge.export.side_files import with_side_files
from visionllm_edge.export.tiny.architecture import tiny_config
from visionllm_edge.runtime.decoder_specs import SchedulerSpec
from visionllm_edge.runtime.errors import CheckpointError, ConfigError

# What the released checkpoint's sections hold, apart from the adapter's training fields.
RELEASED_SD = {
    "llm_hidden_size": 4096,
    "sd_hidden_size": 768,
    "num_queries": 77,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "sd_model_id": "checkpoints/stable-diffusion-v1-5",
    "trigger_token": "[GEN]",
    "trigger_token_id": 32016,
    "num_embed_tokens": 64,
    "cfg_drop_rate": 0.1,
    "cfg_scale": 7.5,
}


def _section(data: dict[str, Any], name: str = "sd_config") -> Section:
    return Section(data, name, supported="Only Stable Diffusion 1.5.", wanted="config.json")


def test_the_released_generation_branch_is_stable_diffusion_1_5() -> None:
    config = diffusion_config(_section(RELEASED_SD), 4096, 64, in_channels=4)
    assert config.adapter == AdapterConfig(llm_hidden_size=4096, num_states=64)
    assert config.adapter.feedforward_size == 3072
    assert config.unet == UNetConfig() and config.unet.in_channels == 4
    assert config.vae == VaeConfig() and config.vae.factor == 8
    assert config.text_encoder == TextEncoderConfig()
    assert config.scheduler == SchedulerSpec(kind="pndm")
    assert (config.steps, config.guidance, config.image_guidance) == (50, 7.5, 0.0)
    assert config.image_size == 512 and not config.edits


def test_the_public_files_say_what_the_defaults_are() -> None:
    files = {
        "unet_config": {
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.6.0",
            "act_fn": "silu",
            "attention_head_dim": 8,
            "block_out_channels": [320, 640, 1280, 1280],
            "center_input_sample": False,
            "cross_attention_dim": 768,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "downsample_padding": 1,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "in_channels": 4,
            "layers_per_block": 2,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-05,
            "norm_num_groups": 32,
            "out_channels": 4,
            "sample_size": 64,
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        },
        "vae_config": {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "in_channels": 3,
            "latent_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "out_channels": 3,
            "sample_size": 512,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        },
        "text_encoder_config": {
            "architectures": ["CLIPTextModel"],
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 1,
            "hidden_act": "quick_gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "vocab_size": 49408,
        },
        "scheduler_config": {
            "_class_name": "PNDMScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": False,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "trained_betas": None,
        },
    }
    with_files = diffusion_config(_section(RELEASED_SD | files), 4096, 64, in_channels=4)
    assert with_files == diffusion_config(_section(RELEASED_SD), 4096, 64, in_channels=4)


def test_the_released_editing_branch_is_instruct_pix2pix() -> None:
    config = diffusion_config(_section(RELEASED_SD, "ip2p_config"), 4096, 64, in_channels=8)
    assert config.unet.in_channels == 8 and config.unet.out_channels == 4
    assert config.scheduler.kind == "euler_ancestral"
    assert (config.steps, config.guidance, config.image_guidance) == (100, 7.5, 1.5)
    assert config.image_size == 256 and config.edits


def test_sizes_of_its_own() -> None:
    config = branch_config()
    assert config.unet.block_out_channels == (8, 16)
    assert config.unet.attention_head_dim == (2, 2)
    assert config.unet.cross_attention_dim == config.text_encoder.hidden_size == 16
    assert config.vae.factor == 2 and config.vae.scaling_factor == 0.5
    assert config.adapter.feedforward_size == 24
    assert config.image_size == 16
    assert branch_config(edits=True).unet.in_channels == 8


def test_blocks_follow_the_number_of_levels() -> None:
    unet = branch_config(unet_config={"block_out_channels": [32, 32, 64]}).unet
    assert unet.down_block_types == ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",)
    assert unet.up_block_types == ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2
    assert unet.attention_head_dim == (8, 8, 8)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("PNDMScheduler", "pndm"),
        ("EulerAncestralDiscreteScheduler", "euler_ancestral"),
        ("DDIMScheduler", "ddim"),
        ("DPMSolverMultistepScheduler", "dpmsolver++"),
    ],
)
def test_schedulers_by_their_class(name: str, kind: str) -> None:
    config = branch_config(
        scheduler_config={"_class_name": name, "beta_start": 0.001, "steps_offset": 0}
    )
    assert (config.scheduler.kind, config.scheduler.beta_start) == (kind, 0.001)
    assert config.scheduler.steps_offset == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"llm_hidden_size": 13}, r"sd_config\.llm_hidden_size: .* \(12\), got 13"),
        ({"num_embed_tokens": 6}, r"num_embed_tokens: .*num_embs_gen \(5\), got 6"),
        ({"num_heads": 3}, r"sd_hidden_size: expected multiples of num_heads \(3\), got 16"),
        ({"num_queries": 9}, r"num_queries: expected at most .* = 8 .*, got 9"),
        ({"cfg_scale": -1}, r"cfg_scale: expected a positive number, got -1"),
        ({"unet_config": {"in_channels": 9}}, r"unet_config\.in_channels: .* \(4\), got 9"),
        ({"unet_config": {"cross_attention_dim": 8}}, r"cross_attention_dim: .* \(16\), got 8"),
        ({"unet_config": {"class_embed_type": "timestep"}}, r"class_embed_type: expected None"),
        ({"unet_config": {"time_embedding_type": "fourier"}}, r"time_embedding_type: .*fourier"),
        ({"unet_config": {"block_out_channels": [8, 12]}}, r"block_out_channels: .* \(8\), got 12"),
        (
            {"unet_config": {"block_out_channels": []}},
            r"block_out_channels: expected 1 positive integers, got \[\]",
        ),
        (
            {"unet_config": {"down_block_types": ["KDownBlock2D"]}},
            r"down_block_types: expected a list of 'CrossAttnDownBlock2D' or .*KDownBlock2D",
        ),
        (
            {"unet_config": {"block_out_channels": [32, 32], "up_block_types": ["UpBlock2D"]}},
            r"up_block_types: .* levels of block_out_channels \(2\), got 1",
        ),
        ({"vae_config": {"shift_factor": 0.1}}, r"vae_config\.shift_factor: expected None"),
        (
            {"vae_config": {"block_out_channels": [24], "norm_num_groups": 16}},
            r"vae_config\.block_out_channels: .*norm_num_groups \(16\), got 24",
        ),
        (
            {"vae_config": {"latent_channels": 16}, "unet_config": {"out_channels": 4}},
            r"unet_config\.out_channels: .*vae_config\.latent_channels \(16\), got 4",
        ),
        ({"text_encoder_config": {"hidden_size": 24}}, r"text_encoder_config\.hidden_size"),
        ({"text_encoder_config": {"use_attention_mask": True}}, r"use_attention_mask"),
        (
            {"scheduler_config": {"_class_name": "UniPCMultistepScheduler"}},
            r"_class_name: expected 'PNDMScheduler' or .*UniPC",
        ),
        ({"scheduler_config": {"prediction_type": "v_prediction"}}, r"prediction_type"),
        ({"scheduler_config": {"timestep_spacing": "trailing"}}, r"timestep_spacing"),
    ],
)
def test_what_is_refused_by_field(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        branch_config(**changed)


def test_a_checkpoint_has_the_branches_that_its_flags_name() -> None:
    data = with_diffusion(tiny_config(80))
    config = config_from_dict(data, name="x")
    assert config.generation is not None and not config.generation.edits
    assert config.editing is not None and config.editing.edits
    off = config_from_dict(data | {"use_sd": False}, name="x")
    assert off.generation is None and off.editing is not None


def _side(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        path = folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("place", ["ckpt/side/sd", "ckpt/sd", "sd"])
def test_files_of_a_side_repository_are_read_where_it_lies(tmp_path: Path, place: str) -> None:
    _side(
        tmp_path / place,
        unet={"_class_name": "UNet2DConditionModel", "sample_size": 96},
        scheduler={"_class_name": "DDIMScheduler", "clip_sample": False},
    )
    data = {"sd_config": {"sd_model_id": "side/sd", "num_queries": 5}, "other": 1}
    (tmp_path / "ckpt").mkdir(exist_ok=True)
    read = with_side_files(data, tmp_path / "ckpt")
    assert read["other"] == 1 and "ip2p_config" not in read
    section = read["sd_config"]
    assert section["num_queries"] == 5
    assert section["unet_config"]["sample_size"] == 96
    assert diffusion_config(_section(section), 12, 5, in_channels=4).scheduler.kind == "ddim"
    assert "unet_config" not in data["sd_config"]  # type: ignore[operator]


def test_what_the_checkpoint_says_itself_stays(tmp_path: Path) -> None:
    _side(tmp_path / "sd", unet={"sample_size": 96}, vae={"scaling_factor": 2.0})
    own = {"sd_model_id": "sd", "unet_config": {"sample_size": 8}}
    section = with_side_files({"sd_config": own}, tmp_path)["sd_config"]
    assert section["unet_config"] == {"sample_size": 8}
    assert section["vae_config"] == {"scaling_factor": 2.0}


@pytest.mark.parametrize("name", ["../sd", "/", "", None, 3])
def test_a_side_repository_that_is_not_there_changes_nothing(tmp_path: Path, name: object) -> None:
    data = {"sd_config": {"sd_model_id": name}}
    assert with_side_files(data, tmp_path / "ckpt") == data


def test_a_damaged_side_file_is_named(tmp_path: Path) -> None:
    _side(tmp_path / "sd", unet={})
    (tmp_path / "sd" / "unet" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"'sd': unet/config\.json is not valid JSON"):
        with_side_files({"sd_config": {"sd_model_id": "sd"}}, tmp_path)


def test_reading_a_checkpoint_reads_its_side_repository(tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    write_config(folder, TINY)
    data = config_for(TINY)
    data["sd_config"] |= {"sd_model_id": "checkpoints/sd-side"}
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")
    _side(tmp_path / "sd-side", unet=data["sd_config"].get("unet_config", {}) | {"sample_size": 7})
    data["sd_config"].pop("unet_config", None)
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")
    config = read_config(folder)
    assert config.generation is not None and config.generation.unet.sample_size == 7


def test_the_section_of_the_tests_is_understood_as_it_stands() -> None:
    assert diffusion_config(_section(diffusion_section(12, 5)), 12, 5, in_channels=4).steps == 50
