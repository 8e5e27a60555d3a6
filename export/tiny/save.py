"""Write the trained tiny model as a checkpoint folder.

Run as ``python -m visionllm_edge.export.tiny.save``. The layout is the official one: config, fp16
safetensors with official key names (tied heads stored once), tokenizer files, preprocessor and
generation config.
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


def save_checkpoint(source: Path, target: Path, *, detector_from: Path | None = None) -> None:
    """Turn a training folder into a checkpoint folder.

    Args:
        source: what :mod:`train` wrote (``state.pt``, config, tokenizer); averaged weights count.
        target: the checkpoint folder, created if need be.
        detector_from: another training folder, whose object decoder is taken.
    """
    state = torch.load(source / "state.pt", weights_only=True)["mean"]
    if detector_from is not None:
        other = torch.load(detector_from / "state.pt", weights_only=True)["mean"]
        state |= {name: tensor for name, tensor in other.items() if name.startswith("gdino.")}
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
    parser.add_argument("--detector-from", type=Path, help="training folder of the object decoder")
    arguments = parser.parse_args()
    save_checkpoint(arguments.source, arguments.target, detector_from=arguments.detector_from)
