"""PTX of an operator's kernels in the parameter order of TensorRT's ahead-of-time plugins.

Our kernels take inputs, outputs, then scalars. TensorRT passes inputs, then scalars, then outputs.
Parameters of a PTX entry are read by name, so moving their declarations is all there is to change:
the same kernel source serves every form.

PTX is what TensorRT documents for this form. A driver refuses PTX that is newer than itself, so
compile with the toolkit of the machine that builds the engine.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from visionllm_edge.plugins.registry import SEMANTIC_OPS

__all__ = ["aot_ptx", "move_outputs_last"]

_PLUGINS = Path(__file__).resolve().parents[1]
_HEADER = "../cuda/common.cuh"
# An entry and its parameter list, which holds no parenthesis.
_ENTRY = re.compile(r"(\.entry\s+\w+\s*\()([^()]*)(\))")


def aot_ptx(op: str, sm: int) -> str:
    """Compile an operator's kernels to PTX and move the outputs last.

    Args:
        op: operator name.
        sm: compute capability, 87 for 8.7.

    Raises:
        RuntimeError: no compiler, or it refuses the source.
    """
    spec = SEMANTIC_OPS[op]
    source = _PLUGINS / spec.module.rpartition(".")[2] / "kernel.cuh"
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    # A missing library is an ImportError, or a RuntimeError of its own kind at the first call.
    except (ImportError, RuntimeError):
        ptx = _nvcc(op, source, sm)
    else:
        ptx = _nvrtc(nvrtc, op, source, sm)
    return move_outputs_last(ptx, inputs=len(spec.inputs), outputs=len(spec.outputs))


def move_outputs_last(ptx: str, *, inputs: int, outputs: int) -> str:
    """Reorder the parameters of every entry from (inputs, outputs, scalars).

    Args:
        ptx: PTX text.
        inputs: pointers that come first.
        outputs: pointers behind them, which move to the end.

    Raises:
        ValueError: no entry, or one with too few parameters.
    """
    seen = 0

    def reorder(match: re.Match[str]) -> str:
        nonlocal seen
        seen += 1
        parameters = [text.strip() for text in match[2].split(",")]
        if len(parameters) < inputs + outputs:
            raise ValueError(
                f"PTX: expected at least {inputs + outputs} parameters, got '{match[1]}' with "
                f"{len(parameters)}."
            )
        moved = parameters[inputs : inputs + outputs]
        ordered = parameters[:inputs] + parameters[inputs + outputs :] + moved
        return match[1] + "\n\t" + ",\n\t".join(ordered) + "\n" + match[3]

    result = _ENTRY.sub(reorder, ptx)
    if not seen:
        raise ValueError("PTX: expected at least one '.entry', got none.")
    return result


def _nvcc(op: str, source: Path, sm: int) -> str:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError(
            f"{op}: no CUDA compiler here. Install the extra 'cuda' (NVRTC) or put nvcc on PATH."
        )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernels.ptx"
        command = [nvcc, "-std=c++17", "-ptx", f"-arch=compute_{sm}", "-o", str(target)]
        done = subprocess.run(
            [*command, "-x", "cu", str(source)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(
                f"{op}, compute_{sm}: nvcc ended with {done.returncode}:\n{done.stderr}"
            )
        return target.read_text(encoding="utf-8")


def _nvrtc(nvrtc: ModuleType, op: str, source: Path, sm: int) -> str:
    def checked(result: tuple[Any, ...]) -> Any:
        status, *values = result
        if int(status) != 0:
            raise RuntimeError(f"{op}, compute_{sm}: NVRTC says {status.name}")
        return values[0] if values else None

    header = (source.parent / _HEADER).read_bytes()
    program = checked(
        nvrtc.nvrtcCreateProgram(
            source.read_bytes(), source.name.encode(), 1, [header], [_HEADER.encode()]
        )
    )
    try:
        options = [b"--std=c++17", f"--gpu-architecture=compute_{sm}".encode()]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status) != 0:
            log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
            checked(nvrtc.nvrtcGetProgramLog(program, log))
            raise RuntimeError(
                f"{op}, compute_{sm}: NVRTC says {status.name}:\n{log.decode(errors='replace')}"
            )
        text = b" " * checked(nvrtc.nvrtcGetPTXSize(program))
        checked(nvrtc.nvrtcGetPTX(program, text))
        return str(text.rstrip(b"\0 "), "utf-8")
    finally:
        nvrtc.nvrtcDestroyProgram(program)
