"""Golden outputs: limits hold, wrong answers are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.engines.small_kit import WEIGHT, golden_arrays, sums_plan
from visionllm_edge.runtime.backends import StageOptions
from visionllm_edge.runtime.engines import golden
from visionllm_edge.runtime.engines.golden import (
    cache_capacity,
    check_engine,
    compare,
    fitted_inputs,
)
from visionllm_edge.runtime.engines.plan import Profile, ShapeRange
from visionllm_edge.runtime.engines.request import BuildRequest, CheckRequest
from visionllm_edge.runtime.errors import ParityError
from visionllm_edge.runtime.ports import Port, StagePorts

PORTS = StagePorts("sums", (Port("x", "float32", ("n", 64)),), (Port("y", "float32", ("n", 64)),))


class Runner:
    """Computes in numpy what the engine would; ``error`` is added to every value."""

    def __init__(self, error: float) -> None:
        self.error = error

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": inputs["x"] @ WEIGHT + np.float32(self.error)}


class Backend:
    def __init__(self, error: float) -> None:
        self.error = error

    def load_stage(self, path: Path, ports: StagePorts, options: StageOptions) -> Runner:
        assert path.name == "sums.engine" and options.sha256 == "d1"
        return Runner(self.error)


def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float) -> Any:
    monkeypatch.setattr(golden, "load_backend", lambda name: Backend(error))
    path = tmp_path / "sums.npz"
    np.savez(path, **golden_arrays())
    engine = str(tmp_path / "sums.engine")
    build = BuildRequest(sums_plan(), str(tmp_path), "tensorrt_rtx", "log", engine)
    return check_engine(CheckRequest(build, "d1", str(path), PORTS.inputs, PORTS.outputs))


def test_a_right_engine_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = check(tmp_path, monkeypatch, 0.0)
    assert result.status == "passed" and result.worst == "y"
    assert 0 <= result.errors["y"] < 1e-4 and 0 <= result.share < 0.1


def test_a_wrong_engine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParityError, match="stage 'sums': output 'y' is wrong"):
        check(tmp_path, monkeypatch, 0.01)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({}, "output 'y' expected"),
        ({"y": np.zeros((2, 3))}, "shape"),
        ({"y": np.array([[0.0, np.nan]])}, "finite"),
    ],
)
def test_missing_misshaped_and_infinite_outputs(outputs: Any, words: str) -> None:
    with pytest.raises(ParityError, match=words):
        compare("sums", outputs, {"y": np.zeros((1, 2))}, {"y": 1.0})


def test_the_cache_is_compared_where_it_is_defined() -> None:
    true = np.ones((1, 2, 3, 4), np.float32)
    longer = np.full((1, 2, 9, 4), 7.0, np.float32)
    longer[:, :, :3] = 1
    outputs = {"present.0.key": longer}
    assert compare("llm", outputs, {"present.0.key": true}, {"present.0.key": 0.0}).share == 0
    longer[0, 0, 2, 0] = 2
    with pytest.raises(ParityError, match=r"present\.0\.key"):
        compare("llm", outputs, {"present.0.key": true}, {"present.0.key": 0.5})


def test_inputs_take_the_engine_s_type_and_capacity() -> None:
    name = "past_key_values.0.key"
    cache = ShapeRange((1, 2, 9, 4), (1, 2, 9, 4), (1, 2, 9, 4))
    plan = sums_plan(profiles=(Profile("prefill", {name: cache}),))
    ports = StagePorts("llm", (Port(name, "float16", (1, 2, "C", 4)),), ())
    inputs = {name: np.ones((1, 2, 3, 4), np.float32)}
    fitted = fitted_inputs(ports, inputs, capacity=cache_capacity(plan))[name]
    assert fitted.shape == (1, 2, 9, 4) and fitted.dtype == np.float16
    assert fitted[:, :, :3].min() == 1 and fitted[:, :, 3:].max() == 0
