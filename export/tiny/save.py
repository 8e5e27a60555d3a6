"""Write the trained tiny model as a checkpoint folder: ``python -m visionllm_edge.export.tiny.save``.

The layout is the official one: config, fp16 safetensors with official key names (tied heads stored
once), tokenizer files, preprocessor and generation config.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from visionllm_edge.export.checkpoint import canonical_name
from visionllm_edge.export.tiny.batches import CLIP_MEAN, CLIP_STD

__all__ = ["save_checkpoint"]

_COPIED = (
    "config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)


def save_checkpoint(source: Path, target: Path, *, which: str = "mean") -> None:
    """Turn the training folder into a checkpoint folder.

    Args:
        source: what :mod:`train` wrote (``state.pt``, config, tokenizer).
        target: the checkpoint folder, created if need be.
        which: ``mean`` for the averaged weights, ``trainer`` for the last ones.
    """
    state = torch.load(source / "state.pt", weights_only=True)[which]
    if which == "trainer":
        state = {k[6:]: v for k, v in state.items() if k.startswith("model.")}
    tensors = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in state.items()
        if canonical_name(name) == name and torch.is_floating_point(tensor)
    }
    target.mkdir(parents=True, exist_ok=True)
    for name in _COPIED:
        shutil.copyfile(source / name, target / name)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    side = config["vis_encoder_config"]["image_size"]
    _write(
        target / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": side,
            "size": side,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "image_mean": list(CLIP_MEAN),
            "image_std": list(CLIP_STD),
            "resample": 3,
        },
    )
    _write(target / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})


def _write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--which", choices=("mean", "trainer"), default="mean")
    arguments = parser.parse_args()
    save_checkpoint(arguments.source, arguments.target, which=arguments.which)
