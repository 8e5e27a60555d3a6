"""Build the C++ form of the plugins: one shared library from the sources of the operators.

For TensorRT applications without Python: trtexec (--dynamicPlugins), Polygraphy (--plugins), C++.
The headers come from the TensorRT SDK of the machine the library is for; nothing is linked but the
C++ runtime, and the CUDA runtime statically. Needs nvcc, no GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from visionllm_edge.plugins.registry import SEMANTIC_OPS
from visionllm_edge.plugins.semantic_op import SemanticOp

__all__ = [
    "LibraryError",
    "build_library",
    "find_nvcc",
    "headers_version",
    "library_command",
    "library_ops",
]

_PLUGINS = Path(__file__).resolve().parents[1]
_SOURCE = "tensorrt_plugin.cpp"
_HEADER = "NvInferRuntime.h"
_MIN_VERSION = (10, 0)


class LibraryError(RuntimeError):
    """The library cannot be built: a tool, a header or an option is wrong, or nvcc failed."""


@dataclass(frozen=True)
class BuiltLibrary:
    """What came out.

    Attributes:
        path: the library.
        size_bytes: its size.
        tensorrt: version of the headers, "10.3".
        sms: compute capabilities with machine code inside.
        ops: operators inside.
    """

    path: Path
    size_bytes: int
    tensorrt: str
    sms: tuple[int, ...]
    ops: tuple[str, ...]


def library_ops() -> dict[str, SemanticOp]:
    """The operators that have a C++ plugin, by name."""
    return {name: op for name, op in SEMANTIC_OPS.items() if (_folder(op) / _SOURCE).is_file()}


def find_nvcc() -> Path:
    """`nvcc` from PATH, else from CUDA_HOME or CUDA_PATH.

    Raises:
        LibraryError: there is none.
    """
    roots = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    path = os.pathsep.join([os.environ.get("PATH", ""), *(f"{root}/bin" for root in roots if root)])
    found = shutil.which("nvcc", path=path)
    if found is None:
        raise LibraryError(
            "building the plugin library needs 'nvcc', which is neither on PATH nor under "
            "CUDA_HOME. Install the CUDA toolkit's compiler, or set CUDA_HOME. (The Python plugin "
            "needs no compiler.)"
        )
    return Path(found)


def headers_version(include: Path) -> tuple[int, int]:
    """Major and minor version of the TensorRT headers in a folder.

    Raises:
        LibraryError: not a folder with TensorRT's headers, or too old.
    """
    header, version_header = include / _HEADER, include / "NvInferVersion.h"
    for path in (header, version_header):
        if not path.is_file():
            raise LibraryError(
                f"--tensorrt-include: expected the folder that holds {_HEADER} and "
                f"NvInferVersion.h, got '{include}' without {path.name}. The headers come with the "
                "TensorRT SDK (Debian: package libnvinfer-headers-dev), not with its wheels."
            )
    # NV_TENSORRT_MAJOR may name another macro: releases from 10.13 on define it by
    # TRT_MAJOR_ENTERPRISE.
    text = version_header.read_text(encoding="utf-8")
    macros: dict[str, str] = dict(re.findall(r"^#define\s+(\w+)\s+(\w+)", text, re.MULTILINE))
    numbers = []
    for name in ("NV_TENSORRT_MAJOR", "NV_TENSORRT_MINOR"):
        value = macros.get(name, "")
        value = macros.get(value, value)
        if not value.isdecimal():
            raise LibraryError(
                f"--tensorrt-include: '{version_header}' expected to define {name} as a number, "
                f"got '{value}'. Check that the headers are complete."
            )
        numbers.append(int(value))
    version = numbers[0], numbers[1]
    if version < _MIN_VERSION:
        raise LibraryError(
            f"--tensorrt-include: the plugins need TensorRT 10.0 or later (IPluginV3), got headers "
            f"of {version[0]}.{version[1]}. Upgrade TensorRT, or build without plugins."
        )
    return version


def supported_sms(nvcc: Path) -> tuple[int, ...]:
    """Compute capabilities that this nvcc can make machine code for."""
    done = subprocess.run(
        [str(nvcc), "--list-gpu-code"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise LibraryError(f"'{nvcc} --list-gpu-code' exited {done.returncode}: {done.stderr}")
    return tuple(sorted(int(sm) for sm in re.findall(r"^sm_(\d+)$", done.stdout, re.MULTILINE)))


def library_command(
    *, nvcc: Path, include: Path, output: Path, sms: Sequence[int], ops: Sequence[str]
) -> list[str]:
    """The nvcc command line.

    Args:
        nvcc: the compiler.
        include: folder of TensorRT's headers.
        output: library to write.
        sms: compute capabilities; the highest is also kept as PTX for later GPUs.
        ops: operator names.
    """
    codes = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in sms]
    codes.append(f"-gencode=arch=compute_{sms[-1]},code=compute_{sms[-1]}")
    available = library_ops()
    return [
        *(str(nvcc), "-x", "cu", "-std=c++17", "-O3", "-shared", "-cudart", "static"),
        *("--threads", "0"),  # as many generations at a time as there are cores
        # Nothing of the library is visible but the two functions that TensorRT looks up.
        *("-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xlinker", "--exclude-libs,ALL"),
        # As system headers: their deprecation warnings are not ours.
        *("-isystem", str(include)),
        *codes,
        *("-o", str(output)),
        *(str(_folder(available[name]) / _SOURCE) for name in ops),
        str(_PLUGINS / "tensorrt_glue" / "entry_points.cpp"),
    ]


def build_library(
    *,
    include: Path,
    output: Path,
    sms: Sequence[int] | None = None,
    ops: Sequence[str] | None = None,
    nvcc: Path | None = None,
) -> BuiltLibrary:
    """Compile the plugins into one shared library.

    Args:
        include: folder of TensorRT's headers.
        output: library to write; its folder must exist.
        sms: compute capabilities (87 for 8.7); the project's list as far as nvcc knows it if None.
        ops: operator names; all with a C++ plugin if None.
        nvcc: the compiler; looked up if None.

    Raises:
        LibraryError: says which part is missing or wrong, with nvcc's own words if it failed.
    """
    version = headers_version(include)
    available = library_ops()
    chosen = tuple(dict.fromkeys(ops)) if ops else tuple(available)
    if unknown := [name for name in chosen if name not in available]:
        raise LibraryError(
            f"--op: expected one of {', '.join(available)}, got {', '.join(unknown)}. "
            "Run 'visionllm-edge plugins list'."
        )
    if not output.parent.is_dir():
        raise LibraryError(
            f"-o: expected an existing folder, got '{output.parent}'. Make it first."
        )
    nvcc = nvcc or find_nvcc()
    sms = _choose_sms(sms, nvcc)
    command = library_command(nvcc=nvcc, include=include, output=output, sms=sms, ops=chosen)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise LibraryError(
            f"nvcc exited {done.returncode} with the headers of TensorRT "
            f"{version[0]}.{version[1]}:\n" + "\n".join(words[-20:])
        )
    return BuiltLibrary(
        path=output,
        size_bytes=output.stat().st_size,
        tensorrt=f"{version[0]}.{version[1]}",
        sms=tuple(sms),
        ops=chosen,
    )


def _choose_sms(wanted: Sequence[int] | None, nvcc: Path) -> list[int]:
    known = supported_sms(nvcc)
    if wanted:
        if unknown := [sm for sm in wanted if sm not in known]:
            raise LibraryError(
                f"--sm: this nvcc compiles for {', '.join(map(str, known))}, got "
                f"{', '.join(map(str, unknown))}. Use a toolkit that knows the GPU."
            )
        return sorted(set(wanted))
    from visionllm_edge.plugins.cuda.compile import SMS

    return sorted(set(SMS) & set(known))


def _folder(op: SemanticOp) -> Path:
    return _PLUGINS / op.module.rpartition(".")[2]
