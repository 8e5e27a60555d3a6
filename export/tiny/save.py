"""Write the trained tiny model as a checkpoint folder, out of one or several trainings.

Run as ``python -m visionllm_edge.export.tiny.save``. The layout is the official one: config, fp16
safetensors with official key names (tied tensors stored once), tokenizer files, preprocessor and
generation config.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from visionllm_edge.export.checkpoint import Checkpoint, canonical_name
from visionllm_edge.export.tiny.architecture import PARTS, deployment_fields, part_fields
from visionllm_edge.export.tiny.batches import CLIP_MEAN, CLIP_STD
from visionllm_edge.export.tiny.training_folder import TOKENIZER_FILES

__all__ = ["PIECES", "save_checkpoint"]

PIECES = {
    "detector": ("gdino.",),
    "pose": ("unipose.", "emb_embeddings_pose."),
    "generation": ("sd.", "emb_embeddings_gen."),
    "editing": ("ip2p.", "emb_embeddings_edit."),
}
"""What each training may bring, by the beginnings of its keys."""


def save_checkpoint(
    source: Path, target: Path, *, pieces: Mapping[str, Path] | None = None
) -> None:
    """Turn training folders into a checkpoint folder; averaged weights count.

    Args:
        source: of the language side (``state.pt``, config, tokenizer); what no other folder brings
            is taken from it.
        target: the checkpoint folder, created if need be.
        pieces: training folder (or its state file) of each of `PIECES`.
    """
    chosen = dict(pieces or {})
    kept = _load(source)
    state: dict[str, Tensor] = dict(kept["mean"])
    scaling = 1.0
    for piece, folder in chosen.items():
        other = _load(folder)
        brought = {n: t for n, t in other["mean"].items() if n.startswith(PIECES[piece])}
        assert brought, f"'{folder}' has no tensor that begins with one of {PIECES[piece]}"
        state = {n: t for n, t in state.items() if not n.startswith(PIECES[piece])} | brought
        scaling = other.get("scaling_factor", scaling)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    parts = [part for part in PARTS if part in chosen]
    if parts:
        if config.get("use_region_encoder"):
            parts.insert(0, "regions")
        width = config["llm_config"]["hidden_size"]
        config |= part_fields(parts, width, scaling_factor=scaling)
        config["visionllm_edge"] = config["visionllm_edge"] | deployment_fields(parts)
    tied = config.get("visionllm_edge", {}).get("tied_prefixes", {})
    target.mkdir(parents=True, exist_ok=True)
    save_file(_stored(state, tied), target / "model.safetensors", metadata={"format": "pt"})
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, target / name)
    _write(target / "config.json", config)
    _write(target / "preprocessor_config.json", _preprocessor(config))
    _write(target / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    Checkpoint(target).check()


def _load(folder: Path) -> dict[str, Any]:
    path = folder / "state.pt" if folder.is_dir() else folder
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def _stored(state: Mapping[str, Tensor], tied: Mapping[str, str]) -> dict[str, Tensor]:
    """What goes into the file: one of each tied tensor, in fp16."""
    out = {}
    for name, tensor in state.items():
        if canonical_name(name, tied) != name or not torch.is_floating_point(tensor):
            continue
        half = tensor.to(torch.float16).contiguous()
        assert bool(half.isfinite().all()), f"{name} does not fit into fp16"
        out[name] = half
    return out


def _preprocessor(config: Mapping[str, Any]) -> dict[str, Any]:
    side = config["vis_encoder_config"]["image_size"]
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": side,
        "size": side,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "resample": 3,
    }


def _write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    for piece in PIECES:
        parser.add_argument(f"--{piece}-from", type=Path, help="training folder")
    arguments = parser.parse_args()
    given = {piece: getattr(arguments, f"{piece}_from") for piece in PIECES}
    save_checkpoint(
        arguments.source,
        arguments.target,
        pieces={piece: folder for piece, folder in given.items() if folder is not None},
    )
