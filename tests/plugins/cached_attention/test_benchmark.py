"""The benchmark of cached attention at a small size: it compares before it times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from visionllm_edge.benchmarks import attention, operator_forms
from visionllm_edge.benchmarks.attention import CASES, FORMS, Case, compare, main
from visionllm_edge.runtime.errors import ParityError

SMALL = {"step": Case(2, 4, 2, 16, 20, 1), "prompt": Case(1, 4, 4, 32, 0, 30)}


def test_the_report(cpu_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CASES", SMALL)
    monkeypatch.setattr(operator_forms, "find_library", lambda: cpu_library)
    out = tmp_path / "results" / "attention.json"
    result = CliRunner().invoke(main, ["--rounds", "2", "--threads", "1", "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(result.output.splitlines()[-1]) == report
    for case in report["cases"].values():
        assert set(case["times"]) == set(FORMS)
        # The forms are not the same computation: the narrower the cache, the further away.
        errors = case["max_abs_difference"]
        assert 0 == errors["GroupQueryAttention fp32"] < errors["kernel fp32"]
        assert errors["kernel fp32"] < errors["kernel fp16"] < errors["kernel int8"]


def test_a_form_that_disagrees_is_not_timed(
    cpu_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "FORMS", {**FORMS, "kernel fp16": ("float16", 1e-9)})
    with pytest.raises(ParityError, match="kernel fp16"):
        compare(SMALL["step"], cpu_library, rounds=1, threads=1)


def test_without_a_library_there_is_nothing_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_forms, "find_library", lambda: None)
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 1
    assert "no library is built" in result.output


def test_the_cases_are_those_of_the_issue() -> None:
    steps = {(case.past, case.new) for case in CASES.values()}
    assert {(64, 1), (1024, 1), (0, 512)} <= steps
