"""The released configuration is understood; everything this compiler does not build is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.export.official_keys import RELEASED, TINY
from tests.export.synthetic import config_for
from visionllm_edge.export.config import config_from_dict, read_config, with_queries
from visionllm_edge.export.tiny.architecture import tiny_config
from visionllm_edge.runtime.errors import CheckpointError, ConfigError

_MISSING = object()


def changed(path: str, value: object) -> dict[str, Any]:
    """The released configuration with one field set, or removed."""
    data = copy.deepcopy(config_for(RELEASED))
    *sections, key = path.split(".")
    place = data
    for name in sections:
        place = place.setdefault(name, {})
    if value is _MISSING:
        del place[key]
    else:
        place[key] = value
    return data


def test_released_model() -> None:
    config = config_from_dict(config_for(RELEASED), name="7b")
    assert config.name == "7b"
    assert (config.vis_output_layer, config.num_embs, config.num_embs_gen) == (-2, 4, 64)
    vision, llm, det = config.vision, config.llm, config.detector
    assert vision.tokens_per_tile == 576
    assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers) == (
        1024,
        4096,
        24,
    )
    assert (llm.vocab_size, llm.hidden_size, llm.intermediate_size) == (32026, 4096, 11008)
    assert (llm.num_hidden_layers, llm.num_key_value_heads, llm.head_dim) == (32, 32, 128)
    assert (llm.rms_norm_eps, llm.rope_theta, llm.max_position_embeddings) == (1e-5, 1e4, 4096)
    assert det.backbone.channels == (96, 192, 384, 768)
    assert (det.backbone.depths, det.backbone.window_size) == ((2, 2, 6, 2), 7)
    assert (det.num_queries, det.d_model, det.mask_dim) == (900, 256, 256)
    assert (det.encoder_layers, det.decoder_layers, det.encoder_ffn_dim) == (6, 6, 2048)
    assert (det.positional_embedding_temperature, det.max_text_len) == (20.0, 256)
    assert config.deployment.det_shortest_edge == 800
    assert config.deployment.det_longest_edge == 1333
    assert config.deployment.template == "vicuna_v1"


def test_tiny_model_of_the_trainer() -> None:
    config = config_from_dict(tiny_config(666), name="tiny")
    assert config.llm.vocab_size == 666
    assert config.llm.num_attention_heads == 2 * config.llm.num_key_value_heads
    assert config.deployment.det_buckets == ((128, 128), (128, 192), (192, 128))
    assert config.deployment.max_tiles == 1


def test_fewer_queries_than_learnt_rows() -> None:
    config = config_from_dict(config_for(RELEASED), name="7b")
    assert config.detector.queries == 900
    fewer = with_queries(config, 300)
    assert (fewer.detector.queries, fewer.detector.num_queries) == (300, 900)
    assert with_queries(fewer, 900) == config


@pytest.mark.parametrize("queries", [-1, 0, 1, 901])
def test_a_number_of_queries_that_cannot_be(queries: int) -> None:
    config = config_from_dict(config_for(RELEASED), name="7b")
    with pytest.raises(ConfigError, match=rf"queries: expected 2 to 900, .*'7b'.* got {queries}"):
        with_queries(config, queries)


def test_a_full_clip_config_keeps_the_tower_under_vision_config() -> None:
    data = config_for(RELEASED)
    tower = data["vis_encoder_config"]
    data["vis_encoder_config"] = {"model_type": "clip", "vision_config": tower}
    assert config_from_dict(data, name="7b").vision.hidden_size == 1024


def test_theta_may_stand_under_rope_parameters() -> None:
    data = config_for(RELEASED)
    del data["llm_config"]["rope_theta"]
    data["llm_config"]["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    assert config_from_dict(data, name="7b").llm.rope_theta == 5e5


def test_null_counts_as_absent() -> None:
    config = config_from_dict(changed("llm_config.num_key_value_heads", None), name="7b")
    assert config.llm.num_key_value_heads == 32


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "llava"),
        ("model_type", _MISSING),
        # The 26B composition.
        ("use_pixelshuffle", True),
        ("vl_bridge_type", "internvl_mlp"),
        ("vl_bridge_type", _MISSING),
        ("vis_encoder_config.model_type", "intern_vit_6b"),
        ("llm_config.model_type", "internlm2"),
        # Adapters that were not merged.
        ("use_llm_lora", True),
        # Other backbones.
        ("gdino_config.backbone_config.model_type", "resnet"),
        ("gdino_config.backbone_config.model_type", "intern_image"),
        ("gdino_config.backbone_config", None),
        ("gdino_config.backbone_config", _MISSING),
        ("use_gdino", False),
        ("gdino_config.num_feature_levels", 5),
        ("gdino_config.num_feature_levels", _MISSING),
        ("gdino_config.two_stage", False),
        ("gdino_config.embedding_init_target", False),
        ("gdino_config.activation_function", "gelu"),
        ("gdino_config.backbone_config.qkv_bias", False),
        ("llm_config.rope_scaling", {"type": "linear", "factor": 2.0}),
        ("llm_config.rope_parameters.rope_type", "llama3"),
        ("llm_config.tie_word_embeddings", True),
        ("llm_config.attention_bias", True),
        ("llm_config.hidden_act", "gelu"),
        ("llm_config.head_dim", 64),
    ],
)
def test_unsupported_composition_is_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"config\.json: {field.replace('.', '[.]')}: expected"):
        config_from_dict(changed(field, value), name="x")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("llm_config", _MISSING, "expected an object, got nothing"),
        ("llm_config", [], "expected an object, got list"),
        ("vis_encoder_config", "openai/clip", "expected an object, got str"),
        ("gdino_config", None, "expected an object, got nothing"),
        ("visionllm_edge", 3, "expected an object, got int"),
        ("llm_config.hidden_size", _MISSING, "expected a positive integer, got nothing"),
        ("llm_config.hidden_size", "4096", "expected a positive integer, got '4096'"),
        ("llm_config.hidden_size", True, "expected a positive integer, got True"),
        ("llm_config.num_hidden_layers", 0, "expected a positive integer, got 0"),
        ("llm_config.rms_norm_eps", "small", "expected a positive number, got 'small'"),
        ("num_embs", 2.5, "expected a positive integer, got 2.5"),
        ("vis_output_layer", "last", "expected an integer, got 'last'"),
        ("gdino_config.backbone_config.depths", _MISSING, "expected 4 positive integers"),
        ("gdino_config.backbone_config.depths", [2, 2, 6], "expected 4 positive integers"),
        ("gdino_config.backbone_config.num_heads", [3, 6, 12, "24"], "expected 4 positive"),
        ("visionllm_edge.det_buckets", [], "expected pairs"),
        ("visionllm_edge.det_buckets", [[800, 801]], "expected pairs"),
        ("visionllm_edge.det_buckets", [[800]], "expected pairs"),
        ("visionllm_edge.det_buckets", [800, 800], "expected pairs"),
        ("visionllm_edge.template", 1, "expected a string, got 1"),
    ],
)
def test_missing_and_malformed_fields(field: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"config\.json: {field.replace('.', '[.]')}: ") as error:
        config_from_dict(changed(field, value), name="x")
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("gdino_config.l_hidden_size", 2048, r"l_hidden_size.*llm_config\.hidden_size \(4096\)"),
        ("gdino_config.num_embs", 8, r"gdino_config\.num_embs.*num_embs \(4\)"),
        ("gdino_config.mask_dim", 128, r"mask_dim.*d_model \(256\)"),
        ("gdino_config.d_model", 200, r"gdino_config\.d_model.*32"),
        ("gdino_config.encoder_attention_heads", 1, r"encoder_attention_heads.*2"),
        ("gdino_config.decoder_attention_heads", 7, r"d_model.*decoder_attention_heads \(7\)"),
        ("gdino_config.backbone_config.num_heads", [3, 5, 12, 24], r"embed_dim.*num_heads\[1\]"),
        ("gdino_config.backbone_config.patch_size", 2, r"patch_size.*\(4\), got 2"),
        ("llm_config.num_attention_heads", 33, r"llm_config\.hidden_size"),
        ("llm_config.num_key_value_heads", 5, r"num_attention_heads.*num_key_value_heads \(5\)"),
        ("vis_encoder_config.image_size", 330, r"image_size.*patch_size \(14\), got 330"),
        ("vis_output_layer", -25, r"vis_output_layer: expected -24 to -1, got -25"),
        ("vis_output_layer", 0, r"vis_output_layer: expected -24 to -1, got 0"),
        ("visionllm_edge.det_buckets", [[128, 128]], r"num_queries = 900.* got 340 in 128x128"),
    ],
)
def test_widths_that_do_not_fit_together(field: str, value: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config_from_dict(changed(field, value), name="x")


def test_whole_file_of_another_type() -> None:
    with pytest.raises(ConfigError, match=r"config\.json: expected an object, got list"):
        config_from_dict([], name="x")  # type: ignore[arg-type]


def test_read_config_takes_the_folder_name(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_for(TINY)), encoding="utf-8")
    config = read_config(folder)
    assert config.name == "my-model"
    assert config.raw["gdino_config"]["d_model"] == config.detector.d_model


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "config.json is missing"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
    ],
)
def test_unreadable_config(tmp_path: Path, content: bytes | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=expected):
        read_config(tmp_path)


def test_folder_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a folder, found nothing"):
        read_config(tmp_path / "absent")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="expected a folder, found a file"):
        read_config(file)
