"""The compiled bundle with the CPU kernels, with the plain functions, and with a wrong kernel."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.plugins.conftest import PlantFault
from visionllm_edge.export.check_lowered import Golden
from visionllm_edge.export.verify import verify_bundle
from visionllm_edge.plugins.cpu.library import SWITCH
from visionllm_edge.runtime.backends import StageOptions, load_backend
from visionllm_edge.runtime.backends import onnxruntime_options as backend
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import BackendError, ParityError


@pytest.fixture(autouse=True)
def fresh_log_lines() -> None:
    backend.say_once.cache_clear()


@pytest.fixture
def use_library(monkeypatch: pytest.MonkeyPatch, cpu_library: Path) -> Path:
    """The backend finds the library of this tree, whatever the installation holds."""
    monkeypatch.setattr(backend, "find_library", lambda: cpu_library)
    return cpu_library


def run_stage(bundle: Bundle, stage: str, *, kernels: bool) -> dict[str, NDArray[np.float32]]:
    golden = Golden(bundle, stage)
    runner = load_backend("onnxruntime").load_stage(
        bundle.stage_model(stage, golden.bucket),
        bundle.manifest.stages[stage].ports(stage),
        StageOptions(cpu_kernels=kernels),
    )
    return {name: np.array(array) for name, array in runner.run(golden.inputs).items()}


@pytest.mark.usefixtures("use_library")
@pytest.mark.parametrize("stage", ["det_encoder", "det_decoder"])
def test_same_bundle_same_answers(
    tiny_bundle: Path, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.open(tiny_bundle)
    with caplog.at_level(logging.INFO, logger="visionllm_edge"):
        with_kernels = run_stage(bundle, stage, kernels=True)
        with_functions = run_stage(bundle, stage, kernels=False)
    lines = [record.getMessage() for record in caplog.records if "ONNX Runtime" in record.msg]
    assert ["CPU kernels (" in line for line in lines] == [True, False]
    different = []
    for name, array in with_functions.items():
        np.testing.assert_allclose(with_kernels[name], array, atol=1e-4, err_msg=name)
        different.append(not np.array_equal(with_kernels[name], array))
    # Another order of additions: were every bit the same, one form would have run twice.
    assert any(different)


@pytest.mark.parametrize("place", ["x = x * width - 0.5f;", "y = y * height - 0.5f;"])
def test_the_gate_refuses_a_wrong_kernel(
    tiny_bundle: Path, plant_fault: PlantFault, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    wrong = plant_fault("ms_deform_attn/cpu_kernel.h", place, place.replace(" - 0.5f", ""))
    monkeypatch.setattr(backend, "find_library", lambda: wrong)
    with pytest.raises(ParityError, match="det_encoder"):
        verify_bundle(tiny_bundle)


def test_without_a_library_the_functions_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend, "find_library", lambda: None)
    with caplog.at_level(logging.INFO, logger="visionllm_edge"):
        backend.session_options(StageOptions())
        backend.session_options(StageOptions())
    assert [r.getMessage() for r in caplog.records if "as ONNX functions" in r.getMessage()] == [
        record.getMessage() for record in caplog.records
    ]
    assert len(caplog.records) == 1


def test_a_library_that_cannot_be_used_is_said_and_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "_kernels.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(backend, "find_library", lambda: broken)
    with caplog.at_level(logging.INFO, logger="visionllm_edge"):
        backend.session_options(StageOptions())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "as ONNX functions: _kernels.so cannot be used" in caplog.text


def test_switches_that_mean_nothing_are_refused(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv(SWITCH, "no")
    with pytest.raises(
        BackendError, match=r"expected 0 \(off\) or 1 \(on, the default\), got 'no'"
    ):
        backend.session_options(StageOptions())
    monkeypatch.delenv(SWITCH)
    request.getfixturevalue("use_library")
    monkeypatch.setenv("VISIONLLM_EDGE_CPU_ISA", "mmx")
    with pytest.raises(
        BackendError, match="expected avx512bf16, avx512vnni, avx512, avx2 or portable"
    ):
        backend.session_options(StageOptions())
