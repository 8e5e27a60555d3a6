"""Run a CUDA kernel of ours on the CPU: g++ compiles the same source through `shim.h`.

Buffers stand between guards of NaN bytes, so that a read outside a tensor spoils the result even
where its weight is zero, and a write outside is seen.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from visionllm_edge.plugins.cuda.launch import KernelLaunch

Array = NDArray[Any]

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
# Bits of the significand, the hidden one counted.
_PRECISION = {"float32": 24, "float16": 11, "bfloat16": 8}

GUARD_BYTES = 256
_PLUGINS = Path(__file__).resolve().parents[3] / "plugins"
_SHIM = Path(__file__).with_name("shim.h")
_KINDS = {
    "ms_deform_attn": ("msda", ("vec", "any", "naive")),
    "grid_sample_prompt_pool": ("pool", ("fold_vec", "fold_any", "sampled", "naive")),
}


def worst(found: Array, expected: Array, dtype: str, *, sums: float = 4e-6) -> float:
    """Largest error in units of what is allowed.

    Args:
        found: what a kernel wrote.
        expected: the reference in float64.
        dtype: element type of `found`: rounding to it may cost half a unit in the last place.
        sums: what fp32 coordinates and sums may cost on top.
    """
    _, exponent = np.frexp(expected)
    half_unit = np.ldexp(1.0, exponent - _PRECISION[dtype] - 1)
    error = np.abs(found.astype(np.float64) - expected) / (half_unit + sums)
    return float(np.where(np.isnan(error), np.inf, error).max(initial=0.0))


@dataclass(frozen=True)
class Fault:
    """A slip planted in a copy of the sources: `old` stands in `file` exactly once."""

    file: str
    old: str
    new: str


class HostKernels:
    """The kernels of one operator, compiled for this CPU.

    Args:
        folder: operator's folder name.
        build: an empty folder for the library.
        fault: planted before compiling.
    """

    def __init__(self, folder: str, build: Path, fault: Fault | None = None) -> None:
        compiler = shutil.which("g++")
        if compiler is None:
            pytest.skip("needs g++ to run the kernels on the CPU")
        for name in ("cuda", folder):
            (build / name).mkdir(parents=True)
            for source in sorted((_PLUGINS / name).glob("*.cuh")):
                text = source.read_text(encoding="utf-8")
                if fault is not None and fault.file == f"{name}/{source.name}":
                    assert text.count(fault.old) == 1, f"{fault.old!r} in {source}"
                    text = text.replace(fault.old, fault.new)
                (build / name / source.name).write_text(text, encoding="utf-8")
        self.short, self.kinds = _KINDS[folder]
        main = build / "main.cpp"
        main.write_text(self._main(folder), encoding="utf-8")
        library = build / "kernels.so"
        command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-fno-strict-aliasing"]
        command += ["-I", str(_SHIM.parent), "-o", str(library), str(main)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self._library = ctypes.CDLL(str(library))

    def _main(self, folder: str) -> str:
        lines = ['#include "shim.h"', f'#include "{folder}/launch.cuh"']
        for code in ("f32", "f16", "bf16"):
            for kind in self.kinds:
                kernel = f"{self.short}_{code}_{kind}"
                lines.append(
                    f'extern "C" const char* host_{kernel}(const unsigned* grid, const unsigned* '
                    "block, void* const* pointers, const int* scalars, int reversed) { return "
                    f"host::launch({kernel}, grid, block, pointers, scalars, reversed != 0); }}"
                )
        lines.append(
            'extern "C" const char* host_plan(int dtype, int aligned, const long long* sizes, '
            "long long* numbers) { visionllm::LaunchPlan plan; "
            f"if (!visionllm::{self.short}::make_plan(dtype, aligned != 0, sizes, &plan)) "
            "return nullptr; for (int i = 0; i < 3; ++i) numbers[i] = plan.grid[i]; "
            "numbers[3] = plan.block; numbers[4] = plan.shared_bytes; "
            "for (int i = 0; i < plan.scalar_count; ++i) numbers[5 + i] = plan.scalars[i]; "
            "return plan.name; }"
        )
        lines.append(
            'extern "C" float host_to_f32(unsigned short bits) '
            "{ return visionllm::to_float(visionllm::f16{bits}); }"
        )
        for code in ("f16", "bf16"):
            lines.append(
                f'extern "C" unsigned short host_to_{code}(float x) '
                f"{{ visionllm::{code} y; visionllm::from_float(x, &y); return y.bits; }}"
            )
        return "\n".join(lines) + "\n"

    def run(
        self,
        plan: KernelLaunch,
        inputs: Sequence[Array],
        output: tuple[tuple[int, ...], str],
        *,
        unaligned: bool = False,
        backwards: bool = False,
    ) -> Array:
        """Launch as a device would.

        Args:
            plan: the launch.
            inputs: in the order of the specification.
            output: shape and element type.
            unaligned: let every floating tensor start one element behind a multiple of 16 bytes.
            backwards: run the threads of a block from the last to the first.
        """
        shape, dtype = output
        empty = np.full(shape, -1, dtype=np.int8).astype(DTYPES[dtype])
        buffers = [_Guarded(array, unaligned) for array in (*inputs, empty)]
        pointers = (ctypes.c_void_p * len(buffers))(*(buffer.address for buffer in buffers))
        call = self._library[f"host_{plan.kernel}"]
        call.restype = ctypes.c_char_p
        assert plan.shared_bytes <= 48 * 1024
        failure = call(
            (ctypes.c_uint * 3)(*plan.grid),
            (ctypes.c_uint * 3)(*plan.block),
            pointers,
            (ctypes.c_int * len(plan.scalars))(*plan.scalars),
            int(backwards),
        )
        assert failure is None, f"{plan.kernel}: {failure.decode()}"
        for buffer in buffers:
            buffer.check_guards()
        return buffers[-1].array

    def plan(self, dtype: int, aligned: bool, sizes: Sequence[int]) -> KernelLaunch | None:
        """What the C++ twin plans; None where it refuses."""
        numbers = (ctypes.c_longlong * 13)()
        call = self._library["host_plan"]
        call.restype = ctypes.c_char_p
        name = call(dtype, int(aligned), (ctypes.c_longlong * len(sizes))(*sizes), numbers)
        if name is None:
            return None
        x, y, z, block, shared_bytes = numbers[:5]
        scalars = tuple(numbers[5 : 5 + len(sizes)])
        return KernelLaunch(name.decode(), (x, y, z), (block, 1, 1), shared_bytes, scalars)

    def half_bits(self, code: str, numbers: Array) -> Array:
        """The kernels' own rounding of float32 numbers to `f16` or `bf16`, as bits."""
        call = self._library[f"host_to_{code}"]
        call.restype, call.argtypes = ctypes.c_ushort, [ctypes.c_float]
        return np.array([call(float(number)) for number in numbers], dtype=np.uint16)

    def float_of_f16(self, bits: Array) -> Array:
        """The kernels' own reading of fp16 bits (the shim's, on this CPU)."""
        call = self._library["host_to_f32"]
        call.restype, call.argtypes = ctypes.c_float, [ctypes.c_ushort]
        return np.array([call(int(number)) for number in bits], dtype=np.float32)


class _Guarded:
    """A copy of an array between two guards."""

    def __init__(self, array: Array, unaligned: bool) -> None:
        shift = array.itemsize if unaligned and array.dtype.kind != "i" else 0
        memory = np.full(array.nbytes + 2 * GUARD_BYTES + 32, 0xFF, dtype=np.uint8)
        start = GUARD_BYTES + (-memory.ctypes.data - GUARD_BYTES) % 16 + shift
        self.memory, self.start, self.end = memory, start, start + array.nbytes
        self.address = memory.ctypes.data + start
        self.array: Array = memory[start : self.end].view(array.dtype).reshape(array.shape)
        self.array[...] = array

    def check_guards(self) -> None:
        assert (self.memory[: self.start] == 0xFF).all(), "written before the tensor"
        assert (self.memory[self.end :] == 0xFF).all(), "written behind the tensor"
