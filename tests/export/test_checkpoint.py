"""Reading checkpoints in the official layout: what loads, what is refused, and by which name."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import resource
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.export.official_keys import RELEASED, TINY, official_keys, part_of, tied_group
from tests.export.synthetic import (
    BIN_SHARDS,
    SAFE_SHARDS,
    State,
    make_state,
    write_bins,
    write_config,
    write_safetensors,
)
from visionllm_edge.export import official_layout
from visionllm_edge.export.checkpoint import Checkpoint, canonical_name, load_model
from visionllm_edge.export.components.model import VisionLLM, meta_model
from visionllm_edge.export.config import VisionLLMConfig, config_from_dict
from visionllm_edge.runtime.errors import CheckpointError

UNUSED = ("vis_encoder.vision_model.post_layernorm", "gdino.model.mask_embed.")
QUERY = "llm.model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(autouse=True)
def _one_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module tree of one configuration is made once, not in every test."""

    def structure(config: VisionLLMConfig) -> VisionLLM:
        key = json.dumps(config.raw, sort_keys=True)
        if key not in _STRUCTURES:
            _STRUCTURES[key] = meta_model(config)
        return _STRUCTURES[key]

    monkeypatch.setattr(official_layout, "meta_model", structure)


_STRUCTURES: dict[str, VisionLLM] = {}


@pytest.fixture(scope="module")
def state() -> State:
    return make_state(TINY)


@pytest.fixture(scope="module")
def folder(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official form: two .bin shards. Tests that change files make their own."""
    path = tmp_path_factory.mktemp("bins")
    write_config(path, TINY)
    write_bins(path, state)
    return path


def needed(name: str) -> bool:
    """Whether inference reads a key, seen from the official list."""
    return not name.startswith(UNUSED) and not name.endswith("relative_position_index")


# The list itself.


def test_official_list_has_the_known_counts() -> None:
    counts = collections.Counter(part_of(name) for name in official_keys(RELEASED))
    assert counts == {
        "vis_encoder": 391,
        "llm": 291,
        "vl_bridge": 4,
        "region_encoder": 12,
        "gdino": 843,
        "unipose": 859,
        "sd": 1169,
        "ip2p": 1169,
        "emb_embeddings": 4,
    }
    assert counts.total() == 4742


def test_official_list_has_the_known_sizes() -> None:
    sizes: collections.Counter[str] = collections.Counter()
    seen = set()
    for name, shape in official_keys(RELEASED).items():
        group = tied_group(name)
        if group not in seen and not name.endswith("relative_position_index"):
            seen.add(group)
            sizes[part_of(name)] += math.prod(shape)
    assert sizes == {
        "vis_encoder": 303_507_456,
        "llm": 6_738_628_608,
        "vl_bridge": 20_979_712,
        "region_encoder": 4_540_608,
        "gdino": 65_417_154,
        "unipose": 65_785_742,
        "sd": 1_086_574_251,
        "ip2p": 1_086_585_771,
        "emb_embeddings": 557_056,
    }


def test_tied_names_become_one() -> None:
    for name in official_keys(RELEASED):
        assert canonical_name(name) == tied_group(name), name


# What the components ask for.


def test_released_model_needs_exactly_the_official_keys(tmp_path: Path) -> None:
    write_config(tmp_path, RELEASED)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    checkpoint = Checkpoint(tmp_path)
    expected = checkpoint.expected()
    seconds = time.process_time() - began
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    official = {
        tied_group(name): shape for name, shape in official_keys(RELEASED).items() if needed(name)
    }
    assert expected == official
    assert checkpoint.shapes == official_keys(RELEASED)
    assert len(checkpoint.shapes) == 4742
    # 7 billion weights in fp32 would be 28 GB.
    assert grown_mib < 300
    assert seconds < 30


def test_structure_of_the_released_model_is_not_allocated() -> None:
    from tests.export.synthetic import config_for

    model = meta_model(config_from_dict(config_for(RELEASED), name="7b"))
    devices = {t.device.type for t in (*model.parameters(), *model.buffers())}
    assert devices == {"meta"}
    assert sum(p.numel() for p in model.parameters()) > 7e9


# Loading.


def check_loaded(folder: Path, state: State) -> None:
    model = load_model(Checkpoint(folder))
    loaded = model.state_dict()
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    stored = {tied_group(name): tensor for name, tensor in state.items() if needed(name)}
    arrived = set()
    for name, tensor in loaded.items():
        assert tensor.dtype == torch.float32
        if name.startswith(UNUSED):
            assert not tensor.any(), name
        else:
            assert torch.equal(tensor, stored[tied_group(name)].float()), name
            arrived.add(tied_group(name))
    assert arrived == set(stored)


def test_values_arrive_from_two_bin_shards(folder: Path, state: State) -> None:
    dtypes = {tensor.dtype for tensor in state.values()}
    assert dtypes == {torch.bfloat16, torch.float32, torch.int64}
    check_loaded(folder, state)


@pytest.mark.parametrize("shards", [True, False], ids=["two shards", "one file"])
def test_values_arrive_from_safetensors(tmp_path: Path, state: State, shards: bool) -> None:
    write_config(tmp_path, TINY)
    write_safetensors(tmp_path, state, shards=shards)
    check_loaded(tmp_path, state)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "the format before it"])
def test_values_arrive_from_one_bin(tmp_path: Path, state: State, zipped: bool) -> None:
    write_config(tmp_path, TINY)
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    check_loaded(tmp_path, state)


def test_values_arrive_without_the_tied_copies(tmp_path: Path, state: State) -> None:
    write_config(tmp_path, TINY)
    kept = {n: t for n, t in state.items() if needed(n) and tied_group(n) == n}
    assert len(kept) < len(state)
    write_safetensors(tmp_path, kept, shards=False)
    check_loaded(tmp_path, state)


def test_any_copy_of_a_tied_tensor_will_do(tmp_path: Path, state: State) -> None:
    write_config(tmp_path, TINY)
    kept = {n: t for n, t in state.items() if not n.startswith("gdino.bbox_embed.")}
    write_safetensors(tmp_path, kept, shards=False)
    check_loaded(tmp_path, state)


def test_dtype_of_the_build(folder: Path, state: State) -> None:
    model = load_model(Checkpoint(folder), torch.float16)
    loaded = model.state_dict()[QUERY]
    assert loaded.dtype == torch.float16
    assert torch.equal(loaded, state[QUERY].to(torch.float16))


# Refusals.


def refused(tmp_path: Path, state: State, message: str) -> None:
    write_config(tmp_path, TINY)
    write_bins(tmp_path, state)
    with pytest.raises(CheckpointError, match=message):
        load_model(Checkpoint(tmp_path))


def test_missing_key_is_named(tmp_path: Path, state: State) -> None:
    broken = {name: t for name, t in state.items() if name != QUERY}
    refused(tmp_path, broken, rf"1 missing: {QUERY}\.")


def test_mis_shaped_key_is_named(tmp_path: Path, state: State) -> None:
    broken = state | {QUERY: state[QUERY][:-1]}
    refused(tmp_path, broken, rf"1 mis-shaped: {QUERY} \(expected \[24, 24\], got \[23, 24\]\)")


def test_unknown_key_is_named(tmp_path: Path, state: State) -> None:
    name = "llm.base_model.model.layers.0.self_attn.q_proj.lora_A.weight"
    refused(tmp_path, state | {name: torch.zeros(2)}, f"1 unknown: {name}")


def test_all_three_at_once_and_a_long_list_is_cut(tmp_path: Path, state: State) -> None:
    broken = {name: t for name, t in state.items() if not name.startswith("vis_encoder.")}
    broken[QUERY] = broken[QUERY][:-1]
    broken["vis_encoder.blocks.0.attn.qkv.weight"] = torch.zeros(2)
    count = sum(needed(name) for name in state if name.startswith("vis_encoder."))
    refused(
        tmp_path,
        broken,
        rf"{count} missing: .* and {count - 12} more; 1 mis-shaped: .*; 1 unknown: vis_encoder\.b",
    )


def test_unknown_part_of_the_model_is_not_waved_through(tmp_path: Path, state: State) -> None:
    refused(tmp_path, state | {"sdxl.weight": torch.zeros(2)}, r"1 unknown: sdxl\.weight")


@pytest.mark.parametrize(
    "name", ["gdino.bbox_embed.2.layers.0.weight", "gdino.model.decoder.bbox_embed.1.layers.2.bias"]
)
def test_copies_that_differ_are_refused(tmp_path: Path, state: State, name: str) -> None:
    refused(tmp_path, state | {name: state[name] + 1}, rf"{name} differs from .*\.0\.layers")


@pytest.mark.parametrize(
    "name",
    [
        "gdino.bbox_embed.1.layers.0.weight",
        "unipose.transformer.decoder.pose_hw_embed.3.layers.2.bias",
        "unipose.backbone.0.layers.1.blocks.0.attn.relative_position_index",
        "vis_encoder.vision_model.post_layernorm.weight",
        "gdino.model.mask_embed.layers.2.bias",
    ],
)
def test_copies_and_unused_tensors_are_checked_too(tmp_path: Path, state: State, name: str) -> None:
    refused(tmp_path, state | {name: state[name][:-1]}, rf"1 mis-shaped: {name} \(expected")


@pytest.mark.parametrize(
    "name", ["gdino.bbox_embed.3.layers.0.weight", "unipose.pose_hw_embed.4.layers.2.bias"]
)
def test_a_copy_for_a_layer_that_is_not_there(tmp_path: Path, state: State, name: str) -> None:
    refused(tmp_path, state | {name: torch.zeros(2)}, f"1 unknown: {name}")


def test_every_key_is_checked(tmp_path: Path, state: State) -> None:
    """Every official key with another shape, unused ones and copies too: none is overlooked."""
    write_config(tmp_path, TINY)
    write_bins(tmp_path, state)
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.entries) == set(official_keys(TINY))
    for name, entry in list(checkpoint.entries.items()):
        checkpoint.entries[name] = dataclasses.replace(entry, shape=(*entry.shape, 7))
    with pytest.raises(CheckpointError, match=rf"not fit config.json: {len(state)} mis-shaped: "):
        checkpoint.check()


def test_a_part_that_is_switched_off_may_be_there(tmp_path: Path, state: State) -> None:
    write_config(tmp_path, TINY, use_sd=False, use_ip2p=False)
    write_bins(tmp_path, state)
    model = load_model(Checkpoint(tmp_path))
    assert not any(name.startswith(("sd.", "ip2p.")) for name in model.state_dict())


def test_a_part_that_is_switched_on_must_be_there(tmp_path: Path, state: State) -> None:
    count = sum(part_of(name) == "region_encoder" for name in state)
    broken = {name: t for name, t in state.items() if part_of(name) != "region_encoder"}
    refused(tmp_path, broken, rf"{count} missing: region_encoder\.mask_embedding\.0\.bias, ")


# One branch's autoencoder for both.

TIED = {"tied_prefixes": {"ip2p.sd_vae.": "sd.sd_vae."}}


def test_tied_parts_are_stored_once(tmp_path: Path, state: State) -> None:
    write_config(tmp_path, TINY, visionllm_edge=TIED)
    kept = {name: t for name, t in state.items() if not name.startswith("ip2p.sd_vae.")}
    write_bins(tmp_path, kept)
    checkpoint = Checkpoint(tmp_path)
    loaded = load_model(checkpoint).state_dict()
    names = [name for name in loaded if name.startswith("ip2p.sd_vae.")]
    assert names
    for name in names:
        assert torch.equal(loaded[name], state[f"sd.{name.removeprefix('ip2p.')}"].float())
    prefix = ("ip2p.sd_vae.decoder.",)
    assert checkpoint.fingerprint(prefix) == checkpoint.fingerprint(("sd.sd_vae.decoder.",))
    assert checkpoint.fingerprint(("ip2p.",)) != checkpoint.fingerprint(("ip2p.sd_unet.",))


def test_tied_parts_that_differ_are_refused(tmp_path: Path, state: State) -> None:
    write_config(tmp_path, TINY, visionllm_edge=TIED)
    write_bins(tmp_path, state)
    with pytest.raises(CheckpointError, match=r"sd\.sd_vae\.\S+ differs from ip2p\.sd_vae\."):
        load_model(Checkpoint(tmp_path))


class _Intruder:
    """Unpickling this creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.trace,))


def test_code_in_a_bin_is_refused_and_not_run(tmp_path: Path, state: State) -> None:
    trace = tmp_path / "trace"
    write_config(tmp_path, TINY)
    write_bins(tmp_path, state)
    torch.save({QUERY: state[QUERY], "extra": _Intruder(trace)}, tmp_path / BIN_SHARDS[1])
    with pytest.raises(CheckpointError, match=rf"'{BIN_SHARDS[1]}'.*only tensors are accepted"):
        Checkpoint(tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [[1, 2], {"step": 7}, {0: torch.zeros(1)}])
def test_bin_must_be_a_dictionary_of_tensors(tmp_path: Path, content: object) -> None:
    write_config(tmp_path, TINY)
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"'pytorch_model\.bin': expected a dictionary of te"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 half a zip file"])
def test_damaged_bin(tmp_path: Path, content: bytes) -> None:
    write_config(tmp_path, TINY)
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"'pytorch_model\.bin': expected a file of plain"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut header", "cut data"])
def test_damaged_safetensors(tmp_path: Path, state: State, damage: str) -> None:
    write_config(tmp_path, TINY)
    write_safetensors(tmp_path, state)
    file = tmp_path / SAFE_SHARDS[1]
    whole = file.read_bytes()
    content = {
        "empty": b"",
        "garbage": b"\x10" * 64,
        "cut header": whole[:100],
        "cut data": whole[:-100],
    }[damage]
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"'{SAFE_SHARDS[1]}': expected safetensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "file",
    ["../outside.bin", "/etc/outside.bin", "sub/inside.bin", "weights.pt", "", 7, None],
)
def test_index_may_only_name_files_beside_it(tmp_path: Path, state: State, file: object) -> None:
    inside = tmp_path / "checkpoint"
    write_config(inside, TINY)
    torch.save({QUERY: state[QUERY]}, tmp_path / "outside.bin")
    index = inside / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {QUERY: file}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"files in the same folder, got ") as error:
        Checkpoint(inside)
    assert repr(file) in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', "\ufeff"])
def test_index_that_is_none(tmp_path: Path, content: str) -> None:
    write_config(tmp_path, TINY)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"'{index.name}': expected JSON with a weight_map"):
        Checkpoint(tmp_path)


def test_shard_that_is_not_there(tmp_path: Path, state: State) -> None:
    write_config(tmp_path, TINY)
    write_bins(tmp_path, state)
    (tmp_path / BIN_SHARDS[0]).unlink()
    with pytest.raises(CheckpointError, match=rf"shard '{BIN_SHARDS[0]}' named by .* is missing"):
        Checkpoint(tmp_path)


def test_folder_without_weights(tmp_path: Path) -> None:
    write_config(tmp_path, TINY)
    with pytest.raises(CheckpointError, match="no weights found"):
        Checkpoint(tmp_path)


# The fingerprint.


def test_fingerprint_does_not_depend_on_files(tmp_path: Path, folder: Path, state: State) -> None:
    fingerprint = Checkpoint(folder).fingerprint()
    assert fingerprint.startswith("sha256:")
    for form in ("swapped bins", "two safetensors", "one safetensors"):
        other = tmp_path / form
        write_config(other, TINY)
        if form == "swapped bins":
            write_bins(other, state, swap=True)
        else:
            write_safetensors(other, state, shards=form == "two safetensors")
        assert Checkpoint(other).fingerprint() == fingerprint, form


def test_fingerprint_does_not_depend_on_copies_and_buffers(
    tmp_path: Path, folder: Path, state: State
) -> None:
    kept = {n: t for n, t in state.items() if needed(n) and tied_group(n) == n}
    write_config(tmp_path, TINY)
    write_safetensors(tmp_path, kept, shards=False)
    whole, part = Checkpoint(folder), Checkpoint(tmp_path)
    assert part.fingerprint() == whole.fingerprint()
    assert part.fingerprint(("sd.",)) != part.fingerprint(("ip2p.",))


def altered(tensor: torch.Tensor) -> torch.Tensor:
    """The same but for the last bit of one element."""
    copy = tensor.clone()
    copy.view(torch.uint8).flatten()[0] ^= 1
    return copy


@pytest.mark.parametrize("name", [QUERY, "gdino.mask_embed.0.layers.1.bias", "sd.emb_proj.0.bias"])
def test_fingerprint_sees_one_bit(tmp_path: Path, folder: Path, state: State, name: str) -> None:
    group = tied_group(name)
    other = {n: altered(t) if tied_group(n) == group else t for n, t in state.items()}
    write_config(tmp_path, TINY)
    write_bins(tmp_path, other)
    assert Checkpoint(tmp_path).fingerprint() != Checkpoint(folder).fingerprint()


def test_fingerprint_sees_the_type(tmp_path: Path, folder: Path, state: State) -> None:
    write_config(tmp_path, TINY)
    write_bins(tmp_path, state | {QUERY: state[QUERY].view(torch.float16)})
    assert Checkpoint(tmp_path).fingerprint() != Checkpoint(folder).fingerprint()
