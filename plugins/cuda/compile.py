"""Compile an operator's CUDA kernels for one GPU generation; no GPU needed.

Two compilers give the same entry points: NVRTC (a library, through `cuda-bindings`) and nvcc (the
toolkit's program). The kernels include no header of the toolkit, so NVRTC needs nothing else. What
the assembler says about every kernel (registers, spills, shared memory) is kept with the result.

Knows nothing about shapes or launches (`plugins/<op>/cuda.py`), nor about who loads the result.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from visionllm_edge.plugins.registry import SEMANTIC_OPS

__all__ = [
    "KERNEL_OPS",
    "SMS",
    "CompiledKernels",
    "KernelResources",
    "available_methods",
    "compile_kernels",
    "parse_resources",
]

SMS = (75, 80, 86, 87, 89, 90, 100, 110, 120)
"""Compute capabilities the kernels are compiled for, times ten. 100 and 110 need CUDA 13."""

_FOLDER = Path(__file__).resolve().parent
_HEADERS = ("../cuda/common.cuh",)

KERNEL_OPS = tuple(
    sorted(
        name
        for name, op in SEMANTIC_OPS.items()
        if (_FOLDER.parent / op.module.rpartition(".")[2] / "kernel.cuh").is_file()
    )
)
"""Operators that have CUDA kernels."""


@dataclass(frozen=True)
class KernelResources:
    """What one kernel takes on one GPU generation, in the assembler's words.

    Attributes:
        registers: per thread.
        spill_stores: bytes a thread writes to local memory for want of registers.
        spill_loads: bytes it reads back.
        shared_bytes: static shared memory per block.
    """

    registers: int
    spill_stores: int
    spill_loads: int
    shared_bytes: int


@dataclass(frozen=True)
class CompiledKernels:
    """Machine code of all kernels of one operator.

    Attributes:
        cubin: what `cuModuleLoadData` takes.
        resources: entry point -> what it takes.
        compiler: name and version of the compiler.
    """

    cubin: bytes
    resources: Mapping[str, KernelResources]
    compiler: str


def available_methods() -> tuple[str, ...]:
    """The compilers of this machine, the preferred one first: `nvrtc`, `nvcc`."""
    methods = []
    try:
        _nvrtc_version()
        methods.append("nvrtc")
    except RuntimeError:
        pass
    if shutil.which("nvcc"):
        methods.append("nvcc")
    return tuple(methods)


def compile_kernels(op: str, sm: str | int, *, method: str | None = None) -> CompiledKernels:
    """Compile all kernels of an operator; the result of one process is remembered.

    Args:
        op: name of a semantic operator with kernels, one of `KERNEL_OPS`.
        sm: compute capability, `87`, `"87"` or `"sm_87"`.
        method: `nvrtc` or `nvcc`; by default the first of `available_methods()`.

    Raises:
        ValueError: unknown operator, capability or method.
        RuntimeError: no compiler, or the compiler refuses the source; its words are in the message.
    """
    if op not in KERNEL_OPS:
        raise ValueError(f"operator '{op}': expected one of {', '.join(KERNEL_OPS)}.")
    number = str(sm).removeprefix("sm_")
    if number not in map(str, SMS):
        raise ValueError(
            f"{op}: compute capability expected one of {', '.join(map(str, SMS))}, got {sm}."
        )
    methods = available_methods()
    if method is None and not methods:
        raise RuntimeError(
            f"{op}: no CUDA compiler here. Install the extra 'cuda' (NVRTC) or put nvcc on PATH."
        )
    chosen = method or methods[0]
    if chosen not in ("nvrtc", "nvcc"):
        raise ValueError(f"{op}: method expected nvrtc or nvcc, got {chosen}.")
    return _compile(op, int(number), chosen)


@functools.cache
def _compile(op: str, sm: int, method: str) -> CompiledKernels:
    folder = SEMANTIC_OPS[op].module.rpartition(".")[2]
    source = _FOLDER.parent / folder / "kernel.cuh"
    compiler = _with_nvrtc if method == "nvrtc" else _with_nvcc
    cubin, log, version = compiler(op, source, sm)
    resources = parse_resources(log)
    if not resources:
        raise RuntimeError(f"{op}, sm_{sm}: {version} reported no kernel. Its log:\n{log}")
    return CompiledKernels(cubin, MappingProxyType(resources), version)


def parse_resources(log: str) -> dict[str, KernelResources]:
    """Read the assembler's lines about every kernel; see the option `--ptxas-options=-v`."""
    found: dict[str, KernelResources] = {}
    # One part per kernel: what stands between its name and the next one's.
    parts = re.split(r"Compiling entry function '(\w+)' for '\w+'", log)[1:]
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
        registers = re.search(r"Used (\d+) registers", text)
        if spills is None or registers is None:
            raise RuntimeError(f"kernel '{name}': registers and spills expected, got:\n{text}")
        shared = re.search(r"(\d+) bytes smem", text)
        found[name] = KernelResources(
            registers=int(registers[1]),
            spill_stores=int(spills[1]),
            spill_loads=int(spills[2]),
            shared_bytes=int(shared[1]) if shared else 0,
        )
    return found


def _with_nvcc(op: str, source: Path, sm: int) -> tuple[bytes, str, str]:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError(f"{op}: nvcc is not on PATH. Install the CUDA toolkit, or use NVRTC.")
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"V([\d.]+)", said)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernels.cubin"
        command = [nvcc, "-std=c++17", "-cubin", f"-arch=sm_{sm}", "-Xptxas", "-v"]
        command += ["-o", str(target), "-x", "cu", str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(
                f"{op}, sm_{sm}: nvcc ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        version = f"nvcc {release[1] if release else 'of unknown version'}"
        return target.read_bytes(), done.stdout + done.stderr, version


def _with_nvrtc(op: str, source: Path, sm: int) -> tuple[bytes, str, str]:
    version = f"nvrtc {_nvrtc_version()}"
    from cuda.bindings import nvrtc

    texts = [(source.parent / name).read_bytes() for name in _HEADERS]
    names = [name.encode() for name in _HEADERS]
    program = _checked(
        nvrtc.nvrtcCreateProgram(
            source.read_bytes(), f"{source.parent.name}.cu".encode(), len(names), texts, names
        )
    )
    try:
        options = [b"--std=c++17", f"--gpu-architecture=sm_{sm}".encode(), b"--ptxas-options=-v"]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        text = log.rstrip(b"\0 ").decode(errors="replace")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"{op}, sm_{sm}: {version} says {status.name}:\n{text}")
        cubin = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
        _checked(nvrtc.nvrtcGetCUBIN(program, cubin))
        return cubin, text, version
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _nvrtc_version() -> str:
    """Version of the NVRTC library; RuntimeError where it or `cuda-bindings` is missing."""
    try:
        from cuda.bindings import nvrtc

        major, minor = _checked(nvrtc.nvrtcVersion())
    # A missing library is an ImportError, or a RuntimeError of its own kind at the first call.
    except (ImportError, RuntimeError) as e:
        raise RuntimeError(
            f"NVRTC cannot be loaded ({type(e).__name__}). Install the extra 'cuda'."
        ) from e
    return f"{major}.{minor}"


def _checked(result: tuple[Any, ...]) -> Any:
    """The values behind a status, after looking at the status."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"NVRTC: {status.name}")
    if len(values) == 1:
        return values[0]
    return tuple(values)
