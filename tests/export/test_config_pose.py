"""`unipose_config`: released values by default, refusals by field name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.export.small_checkpoint import small_config
from tests.export.small_pose import pose_part, small_pose, with_pose
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.export.config_swin import SWIN_TINY
from visionllm_edge.runtime.errors import ConfigError


def test_absent_fields_have_the_released_values() -> None:
    config = pose_part({"model_type": "unipose"})
    assert config.backbone == SWIN_TINY
    assert (config.num_queries, config.num_instances, config.max_keypoints) == (900, 50, 68)
    assert (config.encoder_layers, config.box_layers, config.decoder_layers) == (6, 2, 6)
    assert (config.d_model, config.ffn_dim, config.heads) == (256, 2048, 8)
    assert (config.encoder_n_points, config.decoder_n_points) == (4, 4)
    assert config.positional_embedding_temperature == 20
    assert (config.l_hidden_size, config.num_embs, config.mask_mode) == (4096, 4, "block")


def test_fields_are_read() -> None:
    config = pose_part(small_pose(24, mask_mode="reference68"))
    assert config.backbone.depths == (2, 1, 2, 1)
    assert (config.num_queries, config.num_instances, config.max_keypoints) == (20, 4, 20)
    assert config.mask_mode == "reference68"


def test_the_part_is_there_only_where_it_is_used() -> None:
    assert config_from_dict(small_config(600), name="small").pose is None
    config = config_from_dict(with_pose(small_config(600)), name="small")
    assert config.pose is not None
    assert config.pose.num_embs == config.num_embs
    assert config.deployment.pose_buckets == ((96, 128),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet50"}, r"unipose_config\.backbone: expected 'swin_T_224_1k', got"),
        ({"num_feature_levels": 5}, r"num_feature_levels: expected 4, got 5"),
        ({"two_stage_type": "no"}, r"two_stage_type: expected 'standard', got 'no'"),
        ({"embed_init_tgt": False}, r"embed_init_tgt: expected True, got False"),
        ({"return_interm_indices": [0, 1, 2, 3]}, r"return_interm_indices: expected \[1, 2, 3\]"),
        ({"mask_mode": "block68"}, r"mask_mode: expected 'block' or 'reference68', got 'block68'"),
        ({"pe_temperatureW": 10}, r"pe_temperatureW: expected 20 or 20.0, got 10"),
        ({"dec_layers": 2}, r"dec_layers: expected more than num_box_decoder_layers \(2\), got 2"),
        ({"num_instances": 901}, r"num_instances: expected at most num_queries \(900\), got 901"),
        ({"num_body_points": 17}, r"num_body_points: expected more than 17"),
        ({"hidden_dim": 40, "nheads": 4}, r"hidden_dim: expected a multiple of 32"),
        ({"nheads": 3}, r"nheads: expected an even divisor of hidden_dim \(256\), got 3"),
        ({"dim_feedforward": 100}, r"dim_feedforward: expected a multiple of nheads \(8\)"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pose_part({"model_type": "unipose"} | changes)


def test_another_width_than_the_language_models_is_refused() -> None:
    config = with_pose(small_config(600), l_hidden_size=48)
    with pytest.raises(ConfigError, match=r"l_hidden_size: expected the language model's .*\(32\)"):
        config_from_dict(config, name="small")
