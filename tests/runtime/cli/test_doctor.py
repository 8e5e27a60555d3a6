"""What the doctor says: true on this machine, and honest about machines it is told of."""

from __future__ import annotations

import json
import platform

import pytest
from click.testing import CliRunner

from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.cli.doctor import verdicts
from visionllm_edge.runtime.engines.gpu import Gpu, NoGpu
from visionllm_edge.runtime.targets import TARGETS

NOTHING: dict[str, str | None] = dict.fromkeys(
    ("onnxruntime", "tensorrt", "tensorrt-rtx", "onnx", "torch")
)
NO_GPU = NoGpu("no driver")


def test_json_and_text_agree() -> None:
    told = CliRunner().invoke(main, ["doctor", "--json"])
    assert told.exit_code == 0, told.output
    machine = json.loads(told.stdout)
    assert machine["python"] == platform.python_version()
    assert set(machine["targets"]) == set(TARGETS)
    text = CliRunner().invoke(main, ["doctor"]).stdout
    for name in ("python", "gpu", "nvcc", "nvrtc", "jetpack", "cpu kernels", *machine["packages"]):
        assert name in text
    assert all(f"target {name}" in text for name in TARGETS)


@pytest.mark.parametrize(
    ("target", "packages", "gpu", "build", "run"),
    [
        ("cpu", {"onnxruntime": "1", "torch": "2", "onnx": "1"}, NO_GPU, "yes", "yes"),
        ("cpu", {"onnxruntime": "1"}, NO_GPU, "the extra export is missing", "yes"),
        ("rtx-ada", {}, NO_GPU, "not installed", "not installed"),
        ("rtx-ada", {"tensorrt-rtx": "1.7.1"}, NO_GPU, "yes", "no GPU here, it needs .* 8.9"),
        ("rtx-ada", {"tensorrt-rtx": "1.7.1"}, Gpu("a", 89, 1, "13"), "yes", "yes"),
        ("rtx-ada", {"tensorrt-rtx": "1.7.1"}, Gpu("a", 120, 1, "13"), "yes", "has 12.0"),
        ("jetson-orin-jp6", {"tensorrt": "10.3.0"}, NO_GPU, "no GPU here", "no GPU here"),
        ("jetson-orin-jp6", {"tensorrt": "10.3.0"}, Gpu("Orin", 87, 1, "12.6"), "yes", "yes"),
        ("h100", {"tensorrt": "10.3.0"}, Gpu("H100", 90, 1, "12"), "the target has 11.4", "yes"),
    ],
)
def test_verdicts(
    target: str, packages: dict[str, str], gpu: Gpu | NoGpu, build: str, run: str
) -> None:
    import re

    verdict = verdicts(TARGETS[target], {**NOTHING, **packages}, gpu)
    assert re.search(build, verdict["build"]) and re.search(run, verdict["run"])
