"""Which GPU this machine has, asked of the CUDA runtime; never raises where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Gpu", "NoGpu", "find_gpu"]


@dataclass(frozen=True)
class Gpu:
    """The first device: name, compute capability times ten, memory, and CUDA version of driver."""

    name: str
    sm: int
    memory_bytes: int
    driver_cuda: str


@dataclass(frozen=True)
class NoGpu:
    """Why there is none, in words."""

    reason: str


def find_gpu() -> Gpu | NoGpu:
    """Ask for device 0."""
    try:
        from cuda.bindings import runtime
    except ImportError as e:
        return NoGpu(f"cuda-bindings cannot be imported ({e})")
    try:
        return _ask(runtime)
    except Exception as e:  # the bindings raise their own kinds where no driver is installed
        return NoGpu(f"the CUDA driver cannot be used ({type(e).__name__}: {e})")


def _ask(runtime: Any) -> Gpu | NoGpu:
    status, count = runtime.cudaGetDeviceCount()
    if int(status) != 0 or count == 0:
        return NoGpu(f"the CUDA runtime finds no device ({_name(status)})")
    status, properties = runtime.cudaGetDeviceProperties(0)
    if int(status) != 0:
        return NoGpu(f"the CUDA runtime cannot describe device 0 ({_name(status)})")
    _, driver = runtime.cudaDriverGetVersion()
    name = properties.name
    return Gpu(
        name=name.decode().rstrip("\0") if isinstance(name, bytes) else str(name),
        sm=properties.major * 10 + properties.minor,
        memory_bytes=int(properties.totalGlobalMem),
        driver_cuda=f"{driver // 1000}.{driver % 1000 // 10}",
    )


def _name(status: Any) -> str:
    return str(getattr(status, "name", status))
