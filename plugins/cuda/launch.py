"""How one call of an operator becomes one kernel launch: a plain record, pure Python.

A kernel takes the operator's input pointers in the order of its specification, then the output
pointers, then `scalars` as C ints. `plugins/<op>/cuda.py` fills the record from shapes; whoever
owns a stream (a TensorRT plugin, the device runtime, a benchmark) launches it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visionllm_edge.plugins.semantic_op import SemanticOp

__all__ = [
    "ELEMENT_BYTES",
    "MAX_GRID_YZ",
    "MAX_INT",
    "MAX_SHARED_BYTES",
    "KernelLaunch",
    "kernel_type",
    "require",
]

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

MAX_INT = 2**31 - 1
MAX_GRID_YZ = 65535
MAX_SHARED_BYTES = 48 * 1024
"""What every device grants a block without being asked for more."""

_CODES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class KernelLaunch:
    """One launch.

    Attributes:
        kernel: entry point in the compiled file.
        grid: blocks in x, y, z; a 0 anywhere means there is nothing to launch.
        block: threads in x, y, z.
        shared_bytes: dynamic shared memory.
        scalars: the C ints behind the pointers.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    scalars: tuple[int, ...]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to launch."""
        return 0 in self.grid


def kernel_type(op: SemanticOp, dtype: str) -> str:
    """The code of an element type in a kernel's name.

    Raises:
        ValueError: the operator has no kernel for the type.
    """
    if dtype not in op.inputs[0].dtypes:
        raise ValueError(
            f"{op.name}: element type expected one of {', '.join(op.inputs[0].dtypes)}, "
            f"got {dtype}. Cast the values."
        )
    return _CODES[dtype]


def require(op: str, what: str, size: int, limit: int) -> None:
    """Refuse a size a kernel cannot count.

    Raises:
        ValueError: `size` is above `limit`.
    """
    if size > limit:
        raise ValueError(
            f"{op}: {what} expected at most {limit}, got {size}. Split the call into smaller ones."
        )
