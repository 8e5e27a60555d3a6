"""Find the CPU kernels: the shared library that ONNX Runtime loads as custom operators.

The library is built by ``pip install`` where a compiler is (see ``build.py``) and is never needed:
a graph holds every semantic operator's meaning as an ONNX function too, and ONNX Runtime takes the
kernel if one is registered and the function if not. Same file, same answers, other speed.

``VISIONLLM_EDGE_CPU_KERNELS=0`` turns the kernels off. ``VISIONLLM_EDGE_CPU_ISA`` asks for one
instruction set (avx512bf16, avx512vnni, avx512, avx2, portable) instead of the widest that the
processor has.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from visionllm_edge.plugins.cpu.sources import LIBRARY_STEM

__all__ = ["SWITCH", "find_library", "instruction_set"]

SWITCH = "VISIONLLM_EDGE_CPU_KERNELS"

_FOLDER = Path(__file__).resolve().parent


def find_library(folder: Path = _FOLDER) -> Path | None:
    """The built library, or None: not built, or turned off.

    Args:
        folder: where to look; the newest file wins, because a build by hand is newer than pip's.

    Raises:
        ValueError: the switch has a value that means nothing.
    """
    switch = os.environ.get(SWITCH, "1")
    if switch not in ("0", "1"):
        raise ValueError(f"{SWITCH}: expected 0 (off) or 1 (on, the default), got {switch!r}.")
    if switch == "0":
        return None
    built = [*folder.glob(f"{LIBRARY_STEM}*.so"), *folder.glob(f"{LIBRARY_STEM}*.dylib")]
    return max(built, key=lambda path: path.stat().st_mtime, default=None)


def instruction_set(library: Path) -> str:
    """Which kernels of the library run on this processor.

    Returns:
        avx512bf16, avx512vnni, avx512, avx2 or portable;
        "" if ``VISIONLLM_EDGE_CPU_ISA`` asks for a set that is unknown or missing here.

    Raises:
        OSError: the library cannot be loaded.
    """
    function = ctypes.CDLL(str(library)).visionllm_edge_cpu_isa
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()
