"""Everything that only a GPU can tell, in one run: right, how fast, how near the hardware.

    python -m visionllm_edge.benchmarks.gpu_check --out benchmarks/results

Needs torch with CUDA, cuda-bindings, and NVRTC or nvcc. One JSON file per run goes to a folder
named after the device; the last line on standard output is its summary. Without a GPU it says so
and exits with status 3. A wrong kernel exits with 1, a missed speed target does not.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visionllm_edge.benchmarks.environment import describe_environment
from visionllm_edge.benchmarks.gpu_cases import verdicts

__all__ = ["main", "numbers_by_name", "result_path", "run_bundle", "why_no_gpu"]

_NO_GPU = 3
_PACKAGES = (
    "visionllm-edge", "torch", "triton", "numpy", "cuda-bindings", "nvidia-cuda-nvrtc",
    "onnxruntime-gpu", "onnxruntime", "tensorrt", "tensorrt_rtx",
)  # fmt: skip
_BUNDLE_LIMIT_S = 300


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit status."""
    options = _parser().parse_args(arguments)
    reason = why_no_gpu()
    if reason is not None:
        print(json.dumps({"status": "not run", "reason": reason}))
        print(f"gpu_check: not run: {reason}", file=sys.stderr)
        return _NO_GPU
    report = _measure(options)
    path = result_path(options.out, report["device"]["name"], time.gmtime())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    wrong = [check for check in report["checks"] if not check["passed"]]
    summary = {
        "status": "wrong" if wrong else "ok",
        "checks": len(report["checks"]),
        "wrong": [f"{c['case']}/{c['dtype']}/{c['form']}" for c in wrong],
        "targets": report["targets"],
        "result": path.as_posix(),
    }
    print(json.dumps(summary))
    return 1 if wrong else 0


def why_no_gpu() -> str | None:
    """What is missing for a run, in words; None if nothing is."""
    try:
        import torch
    except ImportError as e:
        return f"torch cannot be imported ({e}); install torch with CUDA"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install torch with CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device; run on a machine with an NVIDIA GPU and its driver"
    try:
        import cuda.bindings.driver  # noqa: F401
    except ImportError as e:
        return f"cuda-bindings cannot be imported ({e}); install 'visionllm-edge[cuda]'"
    from visionllm_edge.plugins.cuda.compile import available_methods

    if not available_methods():
        return "neither NVRTC nor nvcc is there; install 'visionllm-edge[cuda]' or the CUDA toolkit"
    return None


def result_path(root: Path, device: str, when: time.struct_time) -> Path:
    """``<root>/<device>/gpu_check-<UTC time>.json``, the device's name as a folder name."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower().replace("nvidia", "")).strip("-")
    return root / (name or "unknown") / f"gpu_check-{time.strftime('%Y%m%dT%H%M%SZ', when)}.json"


def numbers_by_name(timings: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Every number of the timings as ``case/type/quantity``, for the targets."""
    return {
        f"{row['case']}/{row['dtype']}/{name}": float(value)
        for row in timings
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def run_bundle(bundle: Path, limit_s: float = _BUNDLE_LIMIT_S) -> dict[str, object]:
    """Load and run a bundle in a process of its own: an engine that dies takes only that along."""
    command = [sys.executable, "-m", "visionllm_edge.benchmarks.gpu_bundle", str(bundle)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"bundle": bundle.name, "status": f"stopped after {limit_s:g} s"}
    said = done.stderr.strip().splitlines()[-5:]
    if done.returncode < 0:
        return {"bundle": bundle.name, "status": f"died by signal {-done.returncode}", "log": said}
    if done.returncode or not done.stdout.strip():
        return {"bundle": bundle.name, "status": f"exit status {done.returncode}", "log": said}
    told: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"bundle": bundle.name, **told}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="Folder for the results."
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        action="append",
        default=[],
        help="Also run this bundle: engines, or graphs by ONNX Runtime with CUDA. May repeat.",
    )
    parser.add_argument("--only-check", action="store_true", help="Check, and time nothing.")
    return parser


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from visionllm_edge.benchmarks import gpu_measure

    device = "cuda:0"
    properties = torch.cuda.get_device_properties(device)
    sm = properties.major * 10 + properties.minor
    report: dict[str, Any] = {
        "status": "measured",
        "command": " ".join(sys.argv),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "device": {
            "name": properties.name,
            "sm": sm,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "multiprocessors": properties.multi_processor_count,
            "driver": _driver(),
            "cuda": torch.version.cuda,
        },
        "environment": describe_environment(_PACKAGES),
    }
    # A context must be there before modules are loaded into it.
    torch.zeros(1, device=device)
    kernels = gpu_measure.Kernels(sm)
    report["compiler"] = {op: made.compiler for op, made in kernels.compiled.items()}
    report["resources"] = {
        op: {name: vars(found) for name, found in made.resources.items()}
        for op, made in kernels.compiled.items()
    }
    report["checks"] = gpu_measure.check_kernels(kernels, device)
    report["timings"] = []
    if not options.only_check:
        report["machine"] = gpu_measure.measure_machine(device)
        report["timings"] = gpu_measure.measure_kernels(
            kernels, device, report["machine"]["copy_gb_per_s"]
        )
    report["targets"] = verdicts(numbers_by_name(report["timings"]))
    report["bundles"] = [run_bundle(bundle) for bundle in options.bundle]
    return report


def _commit() -> str:
    return _first_line("git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD")


def _driver() -> str:
    query = "--query-gpu=driver_version"
    return _first_line("nvidia-smi", query, "--format=csv,noheader")


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else "unknown"


if __name__ == "__main__":
    sys.exit(main())
