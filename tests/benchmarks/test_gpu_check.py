"""The GPU check without a GPU: its arithmetic, its verdicts, and that it sees a wrong kernel."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visionllm_edge.benchmarks import gpu_bundle, gpu_check
from visionllm_edge.benchmarks.gpu_cases import (
    CHECKS,
    LIMITS,
    TARGETS,
    TIMED,
    Attention,
    Pooling,
    copies_beyond_cache,
    relative_errors,
    verdicts,
)
from visionllm_edge.benchmarks.gpu_measure import (
    _tensors,
    _true,
    attention_by_grid_sample,
    check_kernels,
    plans,
    pooling_by_grid_sample,
)
from visionllm_edge.plugins.cuda.launch import KernelLaunch

SMALL = (
    Attention("small", ((7, 5), (3, 4), (1, 1)), 13, batch=2, heads=3, depth=8, points=5),
    Attention("encoder", ((4, 5), (2, 3)), 0, heads=2, depth=8, spread=None),
    Pooling("pool", 2, (3, 5), 7, 4, (11, 13)),
)


class ReferenceLauncher:
    """Kernels that are right, but for what a test plants."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong
        self.kernels: list[str] = []

    def launch(self, op: str, plan: KernelLaunch, tensors: Sequence[torch.Tensor]) -> None:
        self.kernels.append(plan.kernel)
        *inputs, output = tensors
        wide = [t.double() if t.is_floating_point() else t for t in inputs]
        if op == "MultiScaleDeformableAttention":
            if self.wrong == "half locations":
                wide[3] = inputs[3].half().double()
            true = attention_by_grid_sample(*wide)
        else:
            true = pooling_by_grid_sample(*wide)
        if self.wrong == "silent":
            return
        if self.wrong == "half the points" and plan.kernel.endswith("naive"):
            true = true * 0.5
        output.copy_(true)


def test_right_kernels_pass() -> None:
    launcher = ReferenceLauncher()
    found = check_kernels(launcher, "cpu", SMALL)
    assert len(found) == 3 * (2 * 3 + 4)
    assert all(check["passed"] for check in found)
    assert {"msda_f32_vec", "msda_bf16_any", "msda_f16_naive", "pool_f32_sampled"} <= set(
        launcher.kernels
    )


@pytest.mark.parametrize(
    ("wrong", "share"),
    [("silent", 1.0), ("half the points", 3 / 10), ("half locations", 0.05)],
)
def test_wrong_kernels_are_seen(wrong: str, share: float) -> None:
    found = check_kernels(ReferenceLauncher(wrong), "cpu", SMALL)
    failed = [check for check in found if not check["passed"]]
    assert len(failed) >= share * len(found)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_the_torch_forms_are_the_operators(case: Attention | Pooling) -> None:
    """What the kernels are compared with for speed computes the same thing."""
    tensors = _tensors(case, "float32", "cpu", seed=3)
    wide = [t.double() if t.is_floating_point() else t for t in tensors]
    form: Any = attention_by_grid_sample if isinstance(case, Attention) else pooling_by_grid_sample
    np.testing.assert_allclose(form(*wide).numpy(), _true(case, tensors), rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", [*CHECKS, *TIMED], ids=lambda case: case.name)
def test_every_case_has_a_plan(case: Attention | Pooling) -> None:
    if isinstance(case, Attention):
        shapes = [
            (case.batch, case.pixels, case.heads, case.depth),
            (len(case.levels), 2),
            (len(case.levels),),
            (case.batch, case.query_count, case.heads, len(case.levels), case.points, 2),
            (case.batch, case.query_count, case.heads, len(case.levels), case.points),
        ]
    else:
        shapes = [
            (case.images, *case.grid, case.channels),
            (case.regions, *case.mask),
            (case.regions,),
        ]
    for dtype in LIMITS:
        for plan in plans(case, shapes, dtype).values():
            assert not plan.empty
    small = case.pixels < 1000 if isinstance(case, Attention) else case.regions < 16
    if small:
        assert [array.shape for array in case.inputs(0)] == shapes


def test_the_encoder_is_the_one_of_the_specification() -> None:
    encoder = TIMED[0]
    assert isinstance(encoder, Attention)
    assert encoder.pixels == encoder.query_count == 17821
    # 17,821 x 256 values in and out and 17,821 x 128 weights of 2 bytes; 2 x 4 bytes a location.
    assert encoder.moved_bytes("float16") == 17821 * (2 * 256 * 2 + 128 * (2 + 8))
    decoder = TIMED[2]
    assert isinstance(decoder, Attention) and decoder.query_count == 900


def test_bytes_of_pooling() -> None:
    assert Pooling("p", 1, (2, 3), 5, 7, (11, 13)).moved_bytes("float32") == 4 * (
        6 * 5 + 7 * 5 + 7 * 143 + 7
    )


def test_an_empty_mask_is_among_the_regions() -> None:
    masks = Pooling("p", 2, (3, 3), 4, 5, (9, 9)).inputs(1)[1]
    assert masks[-1].sum() == 0 and (masks[:-1].sum(axis=(1, 2)) > 0).all()


def test_relative_errors() -> None:
    true = np.array([4.0, -2.0, 0.0])
    assert relative_errors(true.astype(np.float32), true)["max_relative_error"] == 0
    found = relative_errors(np.array([4.0, -2.0, 0.4]), true)
    assert found["max_relative_error"] == pytest.approx(0.1)
    assert found["rms_relative_error"] == pytest.approx(0.4 / math.sqrt(20))
    nan = relative_errors(np.array([4.0, np.nan, 0.0]), true)
    assert nan["max_relative_error"] == math.inf
    zeros = np.zeros(3)
    assert relative_errors(zeros, zeros)["max_relative_error"] == 0
    assert relative_errors(zeros + 1e-9, zeros)["max_relative_error"] == math.inf
    assert relative_errors(zeros[:0], zeros[:0])["max_relative_error"] == 0
    with pytest.raises(ValueError, match="expected shape"):
        relative_errors(zeros, zeros[:2])


def test_buffers_leave_the_cache() -> None:
    megabyte = 2**20
    assert copies_beyond_cache(41 * megabyte, 50 * megabyte) == 4
    assert copies_beyond_cache(1000 * megabyte, 50 * megabyte) == 2
    assert copies_beyond_cache(1, 50 * megabyte) == 64
    with pytest.raises(ValueError, match="some bytes"):
        copies_beyond_cache(0, 1)


def test_verdicts() -> None:
    reached = {
        "encoder 800x1066/float16/ours_us": 150.0,
        "encoder 800x1066/float16/speedup_over_grid_sample": 9.0,
        "encoder 800x1066/float16/max_relative_error": math.inf,
    }
    found = {row["name"]: row["met"] for row in verdicts(reached)}
    assert list(found.values()) == [True, False, False, None]
    assert len(found) == len(TARGETS)


def test_numbers_have_the_names_of_the_targets() -> None:
    quantities = {target.value.rsplit("/", 1)[1] for target in TARGETS}
    row: dict[str, object] = {
        "case": "encoder 800x1066",
        "dtype": "float16",
        "by": "graph",
        "compiled_us": None,
    }
    row |= dict.fromkeys(quantities, 1)
    named = gpu_check.numbers_by_name([row])
    assert set(named) == {f"encoder 800x1066/float16/{name}" for name in quantities}
    for target in TARGETS:
        case, dtype, _ = target.value.rsplit("/", 2)
        assert case in {timed.name for timed in TIMED} and dtype in LIMITS


def test_result_path() -> None:
    path = gpu_check.result_path(Path("r"), "NVIDIA H100 80GB HBM3", time.gmtime(0))
    assert path == Path("r/h100-80gb-hbm3/gpu_check-19700101T000000Z.json")


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if gpu_check.why_no_gpu() is None:
        pytest.skip("this machine has a GPU: run gpu_check itself")
    assert gpu_check.main(["--out", str(tmp_path)]) == 3
    told = capsys.readouterr()
    assert json.loads(told.out)["status"] == "not run"
    assert told.err.startswith("gpu_check: not run: ")
    assert list(tmp_path.iterdir()) == []


def child(code: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    script = folder / "python"
    script.write_text(f"#!{sys.executable}\n{code}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return gpu_check.run_bundle(folder / "rtx", limit_s=5)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("print('loading'); print('{\"status\": \"ran\"}')", "ran"),
        ("import os; os.abort()", "died by signal 6"),
        ("import sys; sys.exit('no such engine')", "exit status 1"),
        ("pass", "exit status 0"),
    ],
)
def test_a_bundle_runs_in_a_process_of_its_own(
    code: str, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = child(code, monkeypatch, tmp_path)
    assert told["bundle"] == "rtx" and told["status"] == status
    if status == "exit status 1":
        assert told["log"] == ["no such engine"]


def test_a_bundle_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert gpu_check.run_bundle(tmp_path, limit_s=0.5)["status"] == "stopped after 0.5 s"


def test_a_bundle_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu_bundle.main([str(tmp_path / "absent")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "not run" and "absent" in told["reason"]
