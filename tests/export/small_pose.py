"""A keypoint decoder of a few thousand weights, as a section of a small checkpoint's config."""

from __future__ import annotations

from typing import Any

from visionllm_edge.export.config_pose import PoseConfig, pose_config
from visionllm_edge.export.config_section import Section

__all__ = ["pose_part", "small_pose", "with_pose"]


def small_pose(llm_width: int, **changes: Any) -> dict[str, Any]:
    """``unipose_config``: one box layer and two keypoint layers, four instances of twenty."""
    return {
        "model_type": "unipose",
        "backbone_config": {
            "embed_dim": 8,
            "depths": [2, 1, 2, 1],
            "num_heads": [1, 1, 2, 2],
            "window_size": 7,
        },
        "hidden_dim": 32,
        "nheads": 4,
        "enc_layers": 1,
        "dec_layers": 3,
        "dim_feedforward": 64,
        "enc_n_points": 4,
        "dec_n_points": 4,
        "num_queries": 20,
        "num_instances": 4,
        "num_body_points": 20,
        "num_box_decoder_layers": 1,
        "l_hidden_size": llm_width,
    } | changes


def pose_part(section: dict[str, Any], num_embs: int = 4) -> PoseConfig:
    """The parsed section."""
    parsed = Section(section, "unipose_config", supported="No.", wanted="config.json")
    return pose_config(parsed, section.get("l_hidden_size", 4096), num_embs)


def with_pose(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A whole config with a keypoint decoder, and one bucket for it."""
    width = config["llm_config"]["hidden_size"]
    edge = config["visionllm_edge"] | {
        "pose_shortest_edge": 96,
        "pose_longest_edge": 128,
        "pose_buckets": [[96, 128]],
    }
    return config | {
        "use_unipose": True,
        "unipose_config": small_pose(width, **changes),
        "visionllm_edge": edge,
    }
