"""What goes wrong in the other process is said in this one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from visionllm_edge.benchmarks.bench import apart
from visionllm_edge.benchmarks.bench.apart import bench_apart
from visionllm_edge.benchmarks.bench.measurement import Workload
from visionllm_edge.benchmarks.bench.run import BenchOptions
from visionllm_edge.runtime.errors import BackendError, BundleError

WORKLOAD = Workload((64, 64), ("circle",), 2, 0, 0.4, 0.1)


def end_itself(path: Path, workload: Workload, options: BenchOptions) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_error_comes_back_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="manifest"):
        bench_apart(tmp_path, WORKLOAD, BenchOptions())


def test_a_process_that_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "_bench", end_itself)
    with pytest.raises(BackendError, match="its process was ended before it had one"):
        bench_apart(tmp_path, WORKLOAD, BenchOptions())
