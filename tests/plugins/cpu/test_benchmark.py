"""The operator benchmark at a small size: it compares before it times, and writes what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from visionllm_edge.benchmarks import operator_forms, operators
from visionllm_edge.benchmarks.operators import CASES, Case, compare, main, make_inputs
from visionllm_edge.plugins.cpu.library import instruction_set
from visionllm_edge.plugins.ms_deform_attn.reference import ms_deform_attn
from visionllm_edge.runtime.errors import ParityError

SMALL = {"encoder": Case(((4, 6), (2, 3)), heads=2), "decoder": Case(((4, 6),), queries=7)}


def test_the_sizes_are_those_of_the_detector() -> None:
    encoder, decoder = (make_inputs(case) for case in CASES.values())
    assert encoder["value"].shape == (1, 22_223, 8, 32)
    assert encoder["sampling_locations"].shape == (1, 22_223, 8, 4, 4, 2)
    assert decoder["sampling_locations"].shape == (1, 900, 8, 4, 4, 2)


def test_points_of_an_encoder_lie_around_their_own_pixel() -> None:
    locations = make_inputs(Case(((40, 60), (20, 30))))["sampling_locations"]
    # The mean over heads and points is the pixel's own place, in (x, y).
    place = locations.mean(axis=(2, 4))[0, 60 * 20 + 30]
    np.testing.assert_allclose(place, [[30.5 / 60, 20.5 / 40]] * 2, atol=0.1)


def test_the_report(cpu_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "CASES", SMALL)
    monkeypatch.setattr(operator_forms, "find_library", lambda: cpu_library)
    out = tmp_path / "results" / "operators.json"
    result = CliRunner().invoke(main, ["--rounds", "2", "--threads", "1", "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(result.stdout.splitlines()[-1]) == report
    assert report["environment"]["threads"] == 1
    assert report["environment"]["kernels"] == instruction_set(cpu_library)
    for case in report["cases"].values():
        assert set(case["times"]) == {"function", "kernel", "torch"}
        assert all(times["runs"] == 2 for times in case["times"].values())
        assert case["max_abs_difference_to_function"]["kernel"] < 1e-4
    assert result.stdout.count("x as fast") == 2 * len(SMALL)


def test_times_of_wrong_answers_are_not_compared(
    cpu_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = SMALL["decoder"]
    right: NDArray[Any] = ms_deform_attn(*cast(Any, make_inputs(case).values()))
    wrong = right + np.float32(0.01)
    monkeypatch.setattr(operators, "_in_torch", lambda inputs, threads: lambda: wrong)
    with pytest.raises(ParityError, match=r"near function \(limits .*, got \{'torch'"):
        compare(case, cpu_library, rounds=1, threads=1)


def test_without_kernels_there_is_nothing_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_forms, "find_library", lambda: None)
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 1
    assert "Run: python -m visionllm_edge.plugins.cpu.build" in result.output
