"""A planted change is found, the same thing twice is not, on a machine with moods."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.benchmarks.bench.made_up import made_up_result, noisy
from visionllm_edge.benchmarks.bench.compare import compare_results, comparison_table
from visionllm_edge.benchmarks.bench.measurement import write_result
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.errors import InputError, MeasurementError

REPETITIONS = 20
PAIRS = 300


def moods(rng: np.random.Generator) -> np.ndarray:
    """A machine that slows down by up to a half for a while: a walk, the same for both sides."""
    return np.exp(np.clip(np.cumsum(rng.normal(0, 0.03, PAIRS)), -0.2, 0.4))


def in_turns(seed: int, slower: float) -> list[str]:
    """What a gate at 2 % reports."""
    rng = np.random.default_rng(seed)
    shared = moods(rng)
    before = made_up_result(noisy(rng, PAIRS, moods=shared.tolist()), session="one")
    after = made_up_result(noisy(rng, PAIRS, moods=shared.tolist(), slower=slower), session="one")
    return [one.what for one in compare_results(before, after).slower(0.02)]


def test_a_stage_made_slower_is_reported_every_time() -> None:
    found = [in_turns(seed, 1.05) for seed in range(REPETITIONS)]
    assert all("detect: det_encoder" in one for one in found)
    assert not any("detect: vision_encoder" in one for one in found)


def test_the_same_bundle_twice_is_never_reported() -> None:
    assert [in_turns(100 + seed, 1.0) for seed in range(REPETITIONS)] == [[]] * REPETITIONS


def test_moments_of_the_machine_are_no_change_of_the_bundle() -> None:
    # Apart: the second run met the machine 4 % slower throughout.
    rng = np.random.default_rng(3)
    before = made_up_result(noisy(rng, PAIRS))
    after = made_up_result(noisy(rng, PAIRS, moods=[1.04] * PAIRS))
    apart = compare_results(before, after)
    assert not apart.interleaved
    assert not apart.slower(0.0)
    assert "measured apart" in comparison_table(apart, 0.02)
    # In turns, the same numbers would be a difference.
    both = [dataclasses.replace(result, session="one") for result in (before, after)]
    assert compare_results(*both).slower(0.02)


def test_a_large_difference_is_real_even_apart() -> None:
    rng = np.random.default_rng(4)
    before, after = (made_up_result(noisy(rng, PAIRS, slower=s)) for s in (1.0, 1.3))
    assert [one.what for one in compare_results(before, after).slower(0.02)] == [
        "detect",
        "detect: det_encoder",
    ]


def test_what_cannot_be_compared() -> None:
    rng = np.random.default_rng(5)
    one = made_up_result(noisy(rng, 30))
    with pytest.raises(InputError, match="expected a task that both results have"):
        compare_results(one, made_up_result(noisy(rng, 30), name="caption"))
    with pytest.raises(MeasurementError, match="expected at least 20 requests"):
        compare_results(one, made_up_result(noisy(rng, 5)))


def test_other_things_that_differ_are_named() -> None:
    one = made_up_result()
    other = made_up_result(change=lambda e: dataclasses.replace(e, device="Another", threads=1))
    notes = "\n".join(compare_results(one, other).notes)
    assert "device differs: A processor before, Another after" in notes
    assert "threads differs: None before, 1 after" in notes


def test_the_command_is_a_gate(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    for name, slower in (("a", 1.0), ("b", 1.1)):
        samples = noisy(rng, PAIRS, slower=slower)
        write_result(tmp_path / f"{name}.json", made_up_result(samples, session="s"))
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    slower_run = CliRunner().invoke(main, ["bench", "compare", *files])
    assert slower_run.exit_code == 1
    assert "slower by more than 2%: detect, detect: det_encoder" in slower_run.stderr
    assert CliRunner().invoke(main, ["bench", "compare", *files[::-1]]).exit_code == 0
    assert (
        CliRunner().invoke(main, ["bench", "compare", *files, "--tolerance", "0.5"]).exit_code == 0
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "expected JSON"), ("{}", "expected schema"), ("[1]", "expected schema")],
)
def test_files_that_are_no_result(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    done = CliRunner().invoke(main, ["bench", "compare", str(path), str(path)])
    assert done.exit_code == 1 and said in done.stderr
    missing = CliRunner().invoke(main, ["bench", "compare", str(tmp_path / "none"), str(path)])
    assert missing.exit_code == 1 and "No such file" in missing.stderr
