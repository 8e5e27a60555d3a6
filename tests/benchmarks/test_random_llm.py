"""Random checkpoints: read back by the compiler's own reader, resumed, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from tokenizers import Tokenizer

from visionllm_edge.benchmarks.random_llm import (
    SHAPES,
    main,
    random_tensors,
    shard_plan,
    write_random_llm,
)
from visionllm_edge.export.llm.weights import open_llm
from visionllm_edge.runtime.errors import ConfigError

SHAPE = SHAPES["tiny-test"]
SHARD_BYTES = 100_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_random_llm(tmp_path / "llm", SHAPE, shard_bytes=SHARD_BYTES)
    return tmp_path / "llm"


def test_the_compiler_reads_the_folder(folder: Path) -> None:
    weights = open_llm(folder)
    assert weights.config.num_key_value_heads == SHAPE.num_key_value_heads
    made = dict(random_tensors(SHAPE))
    assert set(weights.names()) == set(made)
    for name, tensor in made.items():
        assert torch.equal(weights.tensor(name), tensor), name
    assert len(list(folder.glob("*.safetensors"))) == len(shard_plan(SHAPE, SHARD_BYTES)) > 2


def test_matrices_keep_the_size_of_what_passes_through() -> None:
    tensors = dict(random_tensors(SHAPE))
    rows = torch.randn(64, SHAPE.hidden_size)
    passed = rows @ tensors["model.layers.0.self_attn.q_proj.weight"].float().T
    assert 0.8 < passed.std() / rows.std() < 1.2
    inner = torch.randn(64, SHAPE.intermediate_size)
    back = inner @ tensors["model.layers.0.mlp.down_proj.weight"].float().T
    assert 0.4 < back.std() / inner.std() < 0.6  # 1 / sqrt(2 * layers)
    assert torch.equal(tensors["model.norm.weight"], torch.ones(SHAPE.hidden_size).half())


def test_the_type_and_the_seed_are_taken(tmp_path: Path) -> None:
    write_random_llm(tmp_path / "a", SHAPE, dtype="bfloat16", seed=3)
    with safe_open(next((tmp_path / "a").glob("*.safetensors")), "pt") as file:
        head = file.get_tensor("lm_head.weight")
    assert head.dtype == torch.bfloat16
    assert torch.equal(
        head, dict(random_tensors(SHAPE, dtype="bfloat16", seed=3))["lm_head.weight"]
    )
    assert not torch.equal(head.half(), dict(random_tensors(SHAPE))["lm_head.weight"])


def test_what_is_complete_is_kept(folder: Path) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    wanted = [shard.read_bytes() for shard in shards]
    shards[1].unlink()
    shards[2].write_bytes(wanted[2][:-1])
    kept = shards[0].stat().st_mtime_ns
    said: list[str] = []
    write_random_llm(folder, SHAPE, shard_bytes=SHARD_BYTES, progress=said.append)
    assert [shard.read_bytes() for shard in shards] == wanted
    assert shards[0].stat().st_mtime_ns == kept
    assert said[0].startswith(f"{len(shards) - 2} of {len(shards)} shards")
    assert [line.partition(":")[0] for line in said[1:]] == [shards[1].name, shards[2].name]
    assert not list(folder.glob("*.partial"))


def test_another_model_is_not_mixed_in(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Name another folder"):
        write_random_llm(folder, SHAPE, seed=1)


def test_a_full_disk_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=13_000_000_000))
    with pytest.raises(ConfigError, match=r"13\.5 GB of free disk.*found 13\.0 GB"):
        write_random_llm(tmp_path / "large", SHAPES["llama-7b"])
    assert not list((tmp_path / "large").glob("*.safetensors*"))


def test_any_text_survives_the_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == SHAPE.vocab_size
    ids = tokenizer.encode("Naïve? 7 ∙ 8 …").ids
    assert ids[0] == 1 and max(ids) < SHAPE.vocab_size
    assert tokenizer.decode(ids) == "Naïve? 7 ∙ 8 …"


def test_the_command_names_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "llm"
    done = CliRunner().invoke(main, ["tiny-test", str(target), "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(target)
    assert json.loads((target / "config.json").read_text())["torch_dtype"] == "bfloat16"
    again = CliRunner().invoke(main, ["tiny-test", str(target)])
    assert again.exit_code == 1 and "another model" in again.output
