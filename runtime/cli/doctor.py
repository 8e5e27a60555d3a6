"""``visionllm-edge doctor``: what this machine has, and what it can build and run.

Every answer is looked up here and now; nothing is guessed from a name. What is missing is said in
words, since that is what somebody who asks the doctor wants to know.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click

from visionllm_edge.runtime.engines.gpu import Gpu, NoGpu, find_gpu
from visionllm_edge.runtime.targets import TARGETS, Target

__all__ = ["Machine", "diagnose", "doctor", "verdicts"]

_TEGRA_RELEASE = Path("/etc/nv_tegra_release")
_MEMORY = Path("/proc/meminfo")
_PACKAGES = (
    "visionllm-edge",
    "numpy",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "onnx",
    "torch",
    "polygraphy",
)
_BUILDERS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
_TIMEOUT_S = 20

Machine = dict[str, object]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Show what this machine has, and which targets it can build and run."""
    machine = diagnose()
    if as_json:
        click.echo(json.dumps(machine))
        return
    packages, targets = machine.pop("packages"), machine.pop("targets")
    assert isinstance(packages, dict) and isinstance(targets, dict)
    for name, value in machine.items():
        click.echo(f"{name:<18} {value}")
    for name, value in packages.items():
        click.echo(f"{name:<18} {value or 'not installed'}")
    for name, verdict in targets.items():
        click.echo(f"target {name:<18} build: {verdict['build']}; run: {verdict['run']}")


def diagnose() -> Machine:
    """Look everything up."""
    gpu = find_gpu()
    packages = {name: _version(name) for name in _PACKAGES}
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count() or 0,
        "memory": _memory(),
        "gpu": _gpu_text(gpu),
        "jetpack": _tegra_text(),
        "nvcc": _tool("nvcc", lambda text: text.rpartition("release ")[2].split(",")[0]),
        "c++ compiler": _tool("c++", lambda text: text.splitlines()[0]),
        "nvrtc": _nvrtc_text(),
        "cpu kernels": _cpu_kernels_text(),
        "tensorrt_rtx link": _rtx_link_text(),
        "packages": packages,
        "targets": {target.name: verdicts(target, packages, gpu) for target in TARGETS.values()},
    }


def verdicts(target: Target, packages: dict[str, str | None], gpu: Gpu | NoGpu) -> dict[str, str]:
    """Whether a target can be built and run here; `yes`, or why not."""
    if target.backend == "onnxruntime":
        exporter = (
            "yes" if packages["torch"] and packages["onnx"] else "the extra export is missing"
        )
        return {"build": exporter, "run": "yes" if packages["onnxruntime"] else "no onnxruntime"}
    builder = packages[_BUILDERS[target.backend]]
    if builder is None:
        missing = f"{_BUILDERS[target.backend]} is not installed"
        return {"build": missing, "run": missing}
    fits = isinstance(gpu, Gpu) and gpu.sm in target.sm
    on_device = "yes" if fits else _wrong_device(target, gpu)
    wanted = target.tensorrt.split(".")[0]
    if wanted and builder.split(".")[0] != wanted:
        return {
            "build": f"{_BUILDERS[target.backend]} {builder} is installed, "
            f"the target has {target.tensorrt}",
            "run": on_device,
        }
    # TensorRT-RTX compiles for other devices and without any; TensorRT tunes on the device itself.
    return {"build": "yes" if target.backend == "tensorrt_rtx" else on_device, "run": on_device}


def _wrong_device(target: Target, gpu: Gpu | NoGpu) -> str:
    wanted = ", ".join(f"{sm // 10}.{sm % 10}" for sm in target.sm)
    if isinstance(gpu, NoGpu):
        return f"no GPU here, it needs compute capability {wanted}"
    return f"the GPU here has {gpu.sm // 10}.{gpu.sm % 10}, it needs {wanted}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> str:
    try:
        lines = _MEMORY.read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    total, free = kib.get("MemTotal", 0) / 2**20, kib.get("MemAvailable", 0) / 2**20
    return f"{total:.1f} GiB, {free:.1f} GiB available"


def _gpu_text(gpu: Gpu | NoGpu) -> str:
    if isinstance(gpu, NoGpu):
        return f"none: {gpu.reason}"
    return (
        f"{gpu.name}, compute capability {gpu.sm // 10}.{gpu.sm % 10}, "
        f"{gpu.memory_bytes / 2**30:.1f} GiB, driver for CUDA {gpu.driver_cuda}"
    )


def _tegra_text() -> str:
    try:
        return _TEGRA_RELEASE.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    except (OSError, IndexError):
        return "no Jetson (no nv_tegra_release)"


def _tool(name: str, read: Callable[[str], str]) -> str:
    path = shutil.which(name)
    if path is None:
        return "not on the PATH"
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
        return read(done.stdout)
    except (OSError, subprocess.SubprocessError, IndexError) as e:
        return f"does not start ({e})"


def _nvrtc_text() -> str:
    try:
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
    except Exception as e:  # the bindings raise their own kinds where the library is missing
        return f"not available ({type(e).__name__})"
    return f"{major}.{minor}" if int(status) == 0 else f"not available (status {int(status)})"


def _cpu_kernels_text() -> str:
    if importlib.util.find_spec("visionllm_edge.plugins.cpu.library") is None:
        return "not part of this installation"
    from visionllm_edge.plugins.cpu.library import find_library

    try:
        library = find_library()
    except ValueError as error:  # a switch in the environment that says neither on nor off
        return str(error)
    return library.name if library else "not built; the operators run as functions"


def _rtx_link_text() -> str:
    if sys.platform != "linux" or _version("tensorrt-rtx") is None:
        return "not needed"
    from visionllm_edge.runtime.engines.tensorrt_module import rtx_link_state

    return rtx_link_state()
