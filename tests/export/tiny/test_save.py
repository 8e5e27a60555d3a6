"""A trained state becomes a checkpoint folder that loads, and the values are those of the state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.export.components.weights import randomise
from tests.export.official_keys import TINY, official_keys, tied_group
from tests.export.synthetic import config_for
from visionllm_edge.export.checkpoint import Checkpoint, load_model
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.export.tiny.save import save_checkpoint

TOKENIZER = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)


def make(seed: int) -> VisionLLM:
    model = VisionLLM(config_from_dict(config_for(TINY), name="tiny"))
    randomise(model, seed)
    return model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What the trainer leaves behind, with the mean weights different from the last ones."""
    folder = tmp_path / "training"
    folder.mkdir()
    trainer = {f"model.{name}": tensor for name, tensor in make(1).state_dict().items()}
    state = {
        "trainer": {**trainer, "patch_head.weight": torch.ones(2)},
        "mean": make(2).state_dict(),
    }
    torch.save(state, folder / "state.pt")
    (folder / "config.json").write_text(json.dumps(config_for(TINY)), encoding="utf-8")
    for name in TOKENIZER:
        (folder / name).write_bytes(name.encode())
    return folder


def loaded_from(target: Path) -> dict[str, torch.Tensor]:
    return load_model(Checkpoint(target)).state_dict()


def test_the_averaged_weights_arrive(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "checkpoint"
    save_checkpoint(source, target)
    loaded = loaded_from(target)
    for name, tensor in make(2).state_dict().items():
        if "post_layernorm" not in name:
            assert torch.equal(loaded[name], tensor.half().float()), name


def test_the_detector_may_come_from_another_run(source: Path, tmp_path: Path) -> None:
    other, target = tmp_path / "detector", tmp_path / "checkpoint"
    other.mkdir()
    torch.save({"mean": make(3).state_dict()}, other / "state.pt")
    save_checkpoint(source, target, detector_from=other)
    loaded, rest, detector = loaded_from(target), make(2).state_dict(), make(3).state_dict()
    for name, tensor in loaded.items():
        if "post_layernorm" not in name:
            wanted = (detector if name.startswith("gdino.") else rest)[name]
            assert torch.equal(tensor, wanted.half().float()), name


def test_layout(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    save_checkpoint(source, target)
    for name in TOKENIZER:
        assert (target / name).read_bytes() == name.encode()
    assert {path.name for path in target.iterdir()} == {
        *TOKENIZER,
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    processor = json.loads((target / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert (processor["size"], processor["crop_size"]) == (28, 28)
    assert processor["image_mean"] == [0.48145466, 0.4578275, 0.40821073]
    generation = json.loads((target / "generation_config.json").read_text(encoding="utf-8"))
    assert generation == {"bos_token_id": 1, "eos_token_id": 2}
    with safe_open(target / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"F16"}
    official = official_keys(TINY)
    assert names <= set(official)
    assert all(tied_group(name) == name for name in names)  # tied heads are stored once
