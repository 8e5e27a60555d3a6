"""The rest of the tiny model, frozen, for the training of a decoder behind its language model."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from visionllm_edge.export.checkpoint import Checkpoint, load_model
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["frozen_model", "frozen_tokenizer"]

_PARTS = ("vis_encoder.", "vl_bridge.", "llm.", "emb_embeddings_det.", "gdino.")


def frozen_model(folder: Path) -> VisionLLM:
    """Vision encoder, bridge, language model and object decoder, without gradients.

    Args:
        folder: a checkpoint folder, or a training folder with ``state.pt`` and ``config.json``
            (averaged weights count; parts that it lacks come from nowhere and are refused).
    """
    if not (folder / "state.pt").is_file():
        return load_model(Checkpoint(folder))
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = VisionLLM(config_from_dict(data, name=folder.name))
    state = torch.load(folder / "state.pt", weights_only=True)["mean"]
    missing = model.load_state_dict(state, strict=False).missing_keys
    lacking = [name for name in missing if name.startswith(_PARTS)]
    assert not lacking, f"{folder / 'state.pt'} lacks {lacking[:3]} and perhaps more"
    return model.eval().requires_grad_(False)


def frozen_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer beside the weights."""
    controls = json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
    return Tokenizer.from_file(
        folder / "tokenizer.json", controls=controls, bos=1, eos=2, space_after_control=False
    )
