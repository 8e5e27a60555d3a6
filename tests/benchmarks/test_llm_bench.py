"""``bench llm`` on bundles of a random tiny model, compiled and run for real."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from visionllm_edge.benchmarks.bandwidth import Bandwidth
from visionllm_edge.benchmarks.llm_engine import open_llm
from visionllm_edge.benchmarks.peers import rounds as rounds_module
from visionllm_edge.benchmarks.random_llm import SHAPES, write_random_llm
from visionllm_edge.benchmarks.torch_llm import TorchLlm
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.errors import InputError

SHAPE = SHAPES["tiny-test"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm") / "checkpoint"
    write_random_llm(folder, SHAPE)
    return folder


@pytest.fixture(scope="module")
def bundles(checkpoint: Path) -> dict[str, Path]:
    out = {}
    for precision in ("fp32", "int4"):
        out[precision] = checkpoint.parent / precision
        command = ["compile", str(checkpoint), "-o", str(out[precision]), "--no-cache"]
        done = CliRunner().invoke(main, [*command, "--llm-precision", precision])
        assert done.exit_code == 0, done.output
    return out


def test_two_bundles_are_compared(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = Bandwidth(40e9, 2, True)
    monkeypatch.setattr(rounds_module, "measure_read_bandwidth", lambda threads: fixed)
    names = [str(path) for path in bundles.values()]
    options = ["--rounds", "1", "--steps", "3", "--prompt", "20", "--context", "40"]
    done = CliRunner().invoke(main, ["bench", "llm", *names, *options, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["bandwidth_gb_per_s"] == 40
    fp32, int4 = (result["bundles"][name] for name in names)
    assert set(fp32["tokens_per_s"]) == {"prefill", "decode at 40"}
    assert fp32["precision"] == "fp32" and int4["precision"] == "int4"
    assert int4["weight_bytes"] < fp32["weight_bytes"]
    assert int4["cache_bytes"] == fp32["cache_bytes"] // 2
    speed = fp32["tokens_per_s"]["decode at 40"]
    row = fp32["cache_bytes"] // (40 + 3 + 8)
    share = speed * (fp32["weight_bytes"] + 40 * row) / 40e9
    assert fp32["bandwidth_share"]["40"] == pytest.approx(share, rel=1e-6)
    assert set(int4["speed_over_first"]) == set(fp32["tokens_per_s"])
    assert 20e6 < fp32["peak_rss_bytes"] < 600e6


def test_the_engine_gives_what_torch_gives(checkpoint: Path, bundles: dict[str, Path]) -> None:
    engine = open_llm(bundles["fp32"], threads=1)
    reference = TorchLlm(checkpoint, threads=1)
    tokens = np.random.default_rng(0).integers(3, SHAPE.vocab_size, 23).tolist()
    got = np.concatenate([part.copy() for part in engine.logits(tokens, 5)])
    wanted = np.concatenate(list(reference.logits(tokens, 7)))
    assert np.abs(got - wanted).max() < 1e-3 * np.abs(wanted).max()
    nothing: frozenset[int] = frozenset()
    answer = reference.answer(tokens, 6, nothing)
    assert engine.answer(tokens, 6, nothing) == answer
    assert engine.answer(tokens, 6, frozenset({answer[2]})) == answer[: answer.index(answer[2])]


def test_a_context_that_does_not_fit_is_told(bundles: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="at most 256"):
        open_llm(bundles["fp32"], threads=1, positions=300)
    name = str(bundles["fp32"])
    done = CliRunner().invoke(main, ["bench", "llm", name, name])
    assert done.exit_code == 1 and "expected different bundles" in done.output
