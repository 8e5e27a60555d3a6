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
from visionllm_edge.export.checkpoint import Checkpoint, canonical_name, load_model
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.export.tiny.architecture import PARTS, tiny_config
from visionllm_edge.export.tiny.picture_sizes import TIED_PREFIXES
from visionllm_edge.export.tiny.save import PIECES, save_checkpoint
from visionllm_edge.export.tiny.training_folder import load_tokenizer

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
    save_checkpoint(source, target, pieces={"detector": other})
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


def test_pieces_make_one_checkpoint_with_every_part(vocabulary: Path, tmp_path: Path) -> None:
    """Language, pose, generation and editing from a folder each; what two share is stored once."""
    plain = tiny_config(load_tokenizer(vocabulary).size)
    whole = tiny_config(load_tokenizer(vocabulary).size, PARTS, scaling_factor=0.5)
    states = {}
    for seed, part in enumerate(("language", *PIECES)):
        model = VisionLLM(config_from_dict(plain if part == "language" else whole, name="tiny"))
        randomise(model, seed)
        states[part] = dict(model.state_dict())
        (tmp_path / part).mkdir()
        state = {"mean": states[part], "scaling_factor": 0.5}
        if part in PIECES:  # a piece has its own tensors only
            state["mean"] = {k: v for k, v in states[part].items() if k.startswith(PIECES[part])}
        torch.save(state, tmp_path / part / "state.pt")
    for name in TOKENIZER:
        (tmp_path / "language" / name).write_bytes((vocabulary / name).read_bytes())
    (tmp_path / "language" / "config.json").write_text(json.dumps(plain), encoding="utf-8")
    target = tmp_path / "checkpoint"
    save_checkpoint(tmp_path / "language", target, pieces={p: tmp_path / p for p in PIECES})
    assert json.loads((target / "config.json").read_text(encoding="utf-8")) == whole
    loaded = loaded_from(target)
    owners = {prefix: part for part, prefixes in PIECES.items() for prefix in prefixes}
    seen = set()
    for name, tensor in loaded.items():
        owner = next((p for prefix, p in owners.items() if name.startswith(prefix)), "language")
        stored = canonical_name(name, TIED_PREFIXES)
        if stored.startswith("sd."):
            owner = "generation"
        if "post_layernorm" not in name and torch.is_floating_point(tensor):
            assert torch.equal(tensor, states[owner][stored].half().float()), name
            seen.add(owner)
    assert seen == {"language", *PIECES}
    with safe_open(target / "model.safetensors", framework="pt") as file:
        names = file.keys()
    assert not any(name.startswith("ip2p.sd_vae.") for name in names)
    assert (target / "model.safetensors").stat().st_size < 24_000_000


def test_a_piece_without_its_tensors_is_refused(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    torch.save({"mean": {"llm.norm": torch.ones(2)}}, other / "state.pt")
    with pytest.raises(AssertionError, match="has no tensor that begins with"):
        save_checkpoint(source, tmp_path / "checkpoint", pieces={"pose": other})
