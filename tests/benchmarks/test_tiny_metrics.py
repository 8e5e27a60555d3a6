"""The recorded numbers of the tiny checkpoint: how they are written, and what is wanted of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from visionllm_edge.benchmarks import tiny_metrics
from visionllm_edge.benchmarks.accuracy import Evaluation
from visionllm_edge.benchmarks.tiny_metrics import RUNS, main
from visionllm_edge.runtime import VisionLLM

# Least values, by run and metric.
WANTED = {
    "segment": {"box_ap": 0.85, "mask_iou_matched": 0.80},
    "vqa": {"accuracy_yesno": 0.90, "accuracy_color": 0.90},
    "region": {"description_right": 0.90},
    "interactive": {"mask_iou": 0.80},
    "pose": {"pck_0.2": 0.80},
    "generate": {"found": 0.80},
    "edit": {"changed": 0.80},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int, str]]:
    """Every evaluation is one number; returns what was asked for."""
    calls: list[tuple[str, int, int, str]] = []

    def fake(model: Any, task: str, *, images: int, seed: int, prompts: str) -> Evaluation:
        calls.append((task, images, seed, prompts))
        return Evaluation(task, images, seed, None, {"value": len(calls) / 3, "items": 7}, 1.5)

    monkeypatch.setattr(tiny_metrics, "evaluate", fake)
    monkeypatch.setattr(VisionLLM, "load", lambda path, threads: object())
    return calls


def test_all_runs_and_then_one_again(
    asked: list[tuple[str, int, int, str]], tmp_path: Path
) -> None:
    out = tmp_path / "metrics.json"
    result = CliRunner().invoke(main, ["bundle", "-o", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert asked == [tuple(run[1:]) for run in RUNS]
    first = json.loads(out.read_text())["runs"]
    assert list(first) == [run.name for run in RUNS]
    assert first["phrase"] == {
        "task": "segment", "images": 400, "seed": 2027, "prompts": None,
        "metrics": {"value": 0.6667, "items": 7},
    }  # fmt: skip
    again = ["bundle", "-o", str(out), "--only", "vqa"]
    assert CliRunner().invoke(main, again, catch_exceptions=False).exit_code == 0
    second = json.loads(out.read_text())["runs"]
    assert list(second) == list(first)
    assert [name for name in first if first[name] != second[name]] == ["vqa"]


def test_the_committed_numbers_are_those_of_the_runs_and_good_enough(tiny_checkpoint: Path) -> None:
    runs = json.loads((tiny_checkpoint / "metrics.json").read_text())["runs"]
    assert [(name, run["images"], run["seed"]) for name, run in runs.items()] == [
        (run.name, run.images, run.seed) for run in RUNS
    ]
    for name, least in WANTED.items():
        for metric, value in least.items():
            assert runs[name]["metrics"][metric] >= value, (name, metric)
