"""A training's folder: tokenizer files, ``config.json`` and ``state.pt``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.export.tiny.vocabulary import SPECIAL_TOKENS, write_tokenizer
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["TOKENIZER_FILES", "load_tokenizer", "take_tokenizer", "trained_model"]

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that :func:`write_tokenizer` wrote."""
    controls = json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
    assert list(controls) == list(SPECIAL_TOKENS)
    return Tokenizer.from_file(
        folder / "tokenizer.json", controls=controls, bos=1, eos=2, space_after_control=False
    )


def take_tokenizer(folder: Path, start: Path | None) -> int:
    """Put the tokenizer of the training's start into the folder, or a new one.

    Returns:
        The vocabulary size.
    """
    if start is None:
        return write_tokenizer(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = start if start.is_dir() else start.parent
    if source.resolve() != folder.resolve():
        for name in TOKENIZER_FILES:
            shutil.copyfile(source / name, folder / name)
    return load_tokenizer(folder).size


def trained_model(folder: Path) -> VisionLLM:
    """The model with the averaged weights of ``state.pt``."""
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = VisionLLM(config_from_dict(data, name=folder.name))
    mean: dict[str, Tensor] = torch.load(folder / "state.pt", weights_only=True)["mean"]
    model.load_state_dict(mean)
    return model.eval().requires_grad_(False)
