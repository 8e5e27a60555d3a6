"""The random VisionLLM v2: official layout, small files, a folder that the compiler reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.export.official_keys import RELEASED, TINY, official_keys, tied_group
from tests.export.synthetic import config_for
from visionllm_edge.benchmarks import random_visionllm
from visionllm_edge.benchmarks.official_config import official_config
from visionllm_edge.benchmarks.random_tokenizer import write_random_tokenizer
from visionllm_edge.benchmarks.random_visionllm import (
    SHARDS,
    main,
    random_state,
    write_random_visionllm,
)
from visionllm_edge.export.checkpoint import Checkpoint, load_model
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.export.official_layout import official_shapes
from visionllm_edge.export.tokenizer import CONTROL_TOKENS, convert_tokenizer
from visionllm_edge.runtime.errors import ConfigError

SMALL = replace(TINY, vocab=420)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / "model"
    write_random_visionllm(path, config_for(SMALL))
    return path


def test_the_released_composition_has_the_official_keys() -> None:
    shapes = official_shapes(config_from_dict(official_config(), name="released"))
    assert shapes == official_keys(RELEASED)
    assert len(shapes) == 4742


def test_the_compiler_reads_the_folder(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    checkpoint.check()
    assert {n: e.shape for n, e in checkpoint.entries.items()} == official_keys(SMALL)
    assert {entry.file for entry in checkpoint.entries.values()} == set(SHARDS)
    assert {e.dtype for e in checkpoint.entries.values()} == {"bfloat16", "float32", "int64"}
    model = load_model(checkpoint)
    assert all(tensor.isfinite().all() for tensor in model.parameters())
    tokenizer = convert_tokenizer(folder, vocab_size=SMALL.vocab)
    assert tokenizer.controls["[PAD]"] == SMALL.vocab - len(CONTROL_TOKENS)


def test_sizes_of_the_small_files_are_the_released_ones(folder: Path) -> None:
    sizes = {"generation_config.json": 69, "preprocessor_config.json": 316}
    assert {name: (folder / name).stat().st_size for name in sizes} == sizes


def test_equal_storage_is_written_once() -> None:
    state = random_state(official_keys(SMALL))
    first = state["llm.model.layers.0.mlp.up_proj.weight"]
    assert state["llm.model.layers.1.mlp.up_proj.weight"] is first
    assert state["ip2p.sd_vae.quant_conv.weight"] is state["sd.sd_vae.quant_conv.weight"]
    assert state["ip2p.sd_unet.conv_in.weight"] is not state["sd.sd_unet.conv_in.weight"]
    for name, tensor in state.items():
        assert tensor is state[tied_group(name)] or name.startswith("ip2p.")


def test_same_seed_same_weights() -> None:
    shapes = {name: shape for name, shape in official_keys(SMALL).items() if "gdino" in name}
    one, two, other = (random_state(shapes, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in shapes)
    assert not all(torch.equal(one[name], other[name]) for name in shapes)


def test_tokenizer_of_the_official_kind(tmp_path: Path) -> None:
    write_random_tokenizer(tmp_path, vocab_size=32026)
    # The released table of added tokens has this size.
    assert (tmp_path / "added_tokens.json").stat().st_size == 533
    tokenizer = convert_tokenizer(tmp_path, vocab_size=32026)
    assert tokenizer.controls["[PAD]"] == 32000 and tokenizer.controls["[EMB8]"] == 32025
    assert (tokenizer.bos, tokenizer.eos) == (1, 2)


def test_another_models_folder_is_left_alone(folder: Path) -> None:
    config = config_for(SMALL)
    config["llm_config"]["rope_theta"] = 5000.0
    before = (folder / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="found another model's config"):
        write_random_visionllm(folder, config)
    assert (folder / "config.json").read_bytes() == before


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}

    def write(folder: Path, config: object, **_: object) -> None:
        given[folder] = config

    monkeypatch.setattr(random_visionllm, "write_random_visionllm", write)
    options = ["--llm-layers", "2", "--without", "sd,ip2p", "--buckets", "800x800,480x640"]
    result = CliRunner().invoke(main, [str(tmp_path / "x"), *options])
    assert result.exit_code == 0, result.output
    config = json.loads(json.dumps(given[tmp_path / "x"]))
    assert config["llm_config"]["num_hidden_layers"] == 2
    assert (config["use_sd"], config["use_unipose"]) == (False, True)
    assert config["visionllm_edge"]["pose_buckets"] == [[800, 800], [480, 640]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--without", "gdino"], "got 'gdino'"),
        (["--buckets", "800"], "got '800'"),
        (["--llm-layers", "33"], "33 is not in the range"),
    ],
)
def test_wrong_options(tmp_path: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, [str(tmp_path / "x"), *options])
    assert result.exit_code == 2 and message in result.output
    assert not (tmp_path / "x").exists()
