"""Bisecting: command lines, the first layer that differs, and honesty without a GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.engines.small_kit import ROWS, attention_plan, sums_plan, write_kit
from visionllm_edge.export import layerwise
from visionllm_edge.export.layerwise import bisect, command_lines, first_difference
from visionllm_edge.runtime.engines.gpu import Gpu, NoGpu
from visionllm_edge.runtime.errors import ConfigError

ORDER = ["a", "b", "c"]
TRUTH = {name: np.full(4, 10.0, np.float32) for name in ORDER}
needs_polygraphy = pytest.mark.skipif(
    importlib.util.find_spec("polygraphy") is None, reason="polygraphy is not installed"
)


def test_equal_layers_have_no_first_difference() -> None:
    assert first_difference(TRUTH, TRUTH, ORDER, 0.0) == (None, 0.0)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (np.full(4, 10.2, np.float32), 0.02),
        (np.array([10, 10, np.nan, 10], np.float32), float("inf")),
        (np.full(3, 10.0, np.float32), float("inf")),
    ],
)
def test_the_first_bad_layer_in_graph_order_is_named(
    bad: np.ndarray[tuple[int], np.dtype[np.float32]], expected: float
) -> None:
    ours = {**TRUTH, "b": bad, "c": np.zeros(4, np.float32)}
    name, difference = first_difference(ours, TRUTH, ORDER, 0.01)
    assert name == "b" and difference == pytest.approx(expected, rel=1e-5)


def test_tensors_that_one_side_fused_away_are_passed_over() -> None:
    ours = {"a": TRUTH["a"], "c": np.zeros(4, np.float32)}
    assert first_difference(ours, TRUTH, ORDER, 0.01)[0] == "c"


def test_command_lines_name_profiles_and_plugins(tmp_path: Path) -> None:
    graph, library = tmp_path / "sums.onnx", tmp_path / "ops.so"
    reference, device = command_lines(sums_plan(), graph, tmp_path, "tensorrt", library)
    assert reference[:3] == ["run", str(graph), "--onnxrt"]
    assert device[:3] == ["run", str(graph), "--trt"]
    at = device.index("--trt-opt-shapes")
    assert device[at + 1] == f"x:[2,{ROWS}]"
    assert "--strongly-typed" in device and device[-2:] == ["--plugins", str(library)]
    _, rtx = command_lines(attention_plan(), graph, tmp_path, "tensorrt_rtx")
    assert "--strongly-typed" not in rtx and "--plugins" not in rtx


@needs_polygraphy
def test_without_a_gpu_the_reference_runs_and_the_rest_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerwise, "find_gpu", lambda: NoGpu("there is no driver"))
    found = bisect(write_kit(tmp_path / "kit"), "sums")
    assert found.tensors == 2 and found.not_finite is None
    assert not found.compared and found.first is None
    assert found.device == "a GPU is needed, there is no driver"
    assert "--trt" in found.commands[1]


@needs_polygraphy
def test_with_a_gpu_the_wrong_layer_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device's run is replaced by one that spoils a layer; the reference really runs."""
    monkeypatch.setattr(layerwise, "find_gpu", lambda: Gpu("RTX 4090", 89, 1, "13.0"))
    real_run, real_load = layerwise._run, layerwise._load_outputs
    ran: list[str] = []

    def run(plan: object, arguments: list[str], environment: dict[str, str]) -> None:
        ran.append(arguments[2])
        if "--onnxrt" in arguments:
            real_run(sums_plan(), arguments, environment)
        else:
            assert environment == {"POLYGRAPHY_USE_TENSORRT_RTX": "1"}

    def load(path: Path) -> dict[str, Any]:
        outputs: dict[str, Any] = dict(real_load(path.with_name("onnxruntime.json")))
        if path.name == "device.json":
            outputs["moved"] = outputs["moved"] + 1
        return outputs

    monkeypatch.setattr(layerwise, "_run", run)
    monkeypatch.setattr(layerwise, "_load_outputs", load)
    found = bisect(write_kit(tmp_path / "kit"), "sums")
    assert ran == ["--onnxrt", "--trt"]
    assert found.compared and found.first == "moved" and found.difference > 0.1


def test_a_stage_without_golden_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no golden inputs"):
        bisect(write_kit(tmp_path / "kit"), "attention")
