"""A checkpoint of a few thousand random weights in the official layout; compiles in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.export.tokenizer_files import write_tokenizer_files
from visionllm_edge.export.checkpoint import canonical_name
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.export.tiny.architecture import tiny_config

__all__ = ["small_config", "write_small_checkpoint", "write_weights"]


def small_config(vocab_size: int) -> dict[str, Any]:
    """The tiny checkpoint's config with everything made smaller, and two buckets."""
    config = tiny_config(vocab_size)
    dim = 32
    config["vis_encoder_config"] |= {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
    }
    config["llm_config"] |= {
        "hidden_size": dim,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config["gdino_config"]["backbone_config"] |= {
        "embed_dim": 8,
        "depths": [2, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
    }
    config["gdino_config"] |= {
        "num_queries": 20,
        "d_model": 32,
        "mask_dim": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "l_hidden_size": dim,
    }
    config["visionllm_edge"] |= {
        "det_shortest_edge": 96,
        "det_longest_edge": 128,
        "det_buckets": [[96, 96], [96, 128]],
    }
    return config


def write_small_checkpoint(folder: Path, *, seed: int = 0) -> Path:
    """Write config, weights and tokenizer files; returns the folder."""
    vocab_size = write_tokenizer_files(folder)
    config = small_config(vocab_size)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_weights(folder, seed=seed)
    return folder


def write_weights(folder: Path, *, seed: int, detector_seed: int | None = None) -> None:
    """(Re)write the weights for the config that is there.

    Args:
        folder: of the checkpoint.
        seed: of all weights.
        detector_seed: of the object decoder's weights, if they shall be others.
    """
    config = config_from_dict(json.loads((folder / "config.json").read_text()), name="small")
    state = _random_state(config, seed)
    if detector_seed is not None:
        other = _random_state(config, detector_seed)
        state |= {name: tensor for name, tensor in other.items() if name.startswith("gdino.")}
    save_file(state, folder / "model.safetensors")


def _random_state(config: Any, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {
        name: tensor.contiguous().clone()
        for name, tensor in VisionLLM(config).state_dict().items()
        if canonical_name(name) == name
    }
