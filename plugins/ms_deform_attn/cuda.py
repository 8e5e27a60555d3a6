"""From shapes to one CUDA launch of deformable attention. Pure Python; the twin of `launch.cuh`."""

from __future__ import annotations

from collections.abc import Sequence

from visionllm_edge.plugins.cuda.launch import (
    ELEMENT_BYTES,
    MAX_GRID_YZ,
    MAX_INT,
    KernelLaunch,
    kernel_type,
    require,
)
from visionllm_edge.plugins.ms_deform_attn.spec import MS_DEFORM_ATTN

__all__ = ["launch", "launch_naive"]

# As in kernel.cuh.
_THREADS = 128
_ROWS = 32


def launch(shapes: Sequence[tuple[int, ...]], dtype: str, *, aligned: bool = True) -> KernelLaunch:
    """Choose kernel, grid and block.

    Args:
        shapes: of the five inputs, in the order of the specification.
        dtype: element type of value, weights and output.
        aligned: whether every input and the output start at multiples of 16 bytes.

    Raises:
        ValueError: shapes that contradict each other, an unknown type, or sizes beyond what the
            kernel counts in 32 bits.
    """
    code = kernel_type(MS_DEFORM_ATTN, dtype)
    sizes = MS_DEFORM_ATTN.letters(shapes)
    batch, pixels, heads, depth = (sizes[letter] for letter in ("N", "S", "M", "D"))
    levels, queries, points = (sizes[letter] for letter in ("L", "Lq", "P"))
    name = MS_DEFORM_ATTN.name
    require(name, "S * M * D (elements of one image)", pixels * heads * depth, MAX_INT)
    require(name, "L * P (samples of a query)", levels * points, MAX_INT)
    require(name, "M (heads)", heads, MAX_GRID_YZ)
    require(name, "N (images)", batch, MAX_GRID_YZ)
    vector = aligned and depth * ELEMENT_BYTES[dtype] % 16 == 0
    chunks = depth * ELEMENT_BYTES[dtype] // 16 if vector else depth
    lanes = max(1, min(chunks, _THREADS))
    rows = min(_ROWS, _THREADS // lanes)
    return KernelLaunch(
        kernel=f"msda_{code}_{'vec' if vector else 'any'}",
        grid=(-(-queries // rows) if depth else 0, heads, batch),
        block=(lanes * rows, 1, 1),
        shared_bytes=0,
        scalars=(batch, pixels, heads, depth, levels, queries, points),
    )


def launch_naive(shapes: Sequence[tuple[int, ...]], dtype: str) -> KernelLaunch:
    """The control: one thread per output element."""
    plan = launch(shapes, dtype, aligned=False)
    batch, _, heads, depth, _, queries, _ = plan.scalars
    blocks = -(-batch * queries * heads * depth // _THREADS)
    require(MS_DEFORM_ATTN.name, "blocks of the naive kernel", blocks, MAX_INT)
    return KernelLaunch(
        kernel=f"msda_{kernel_type(MS_DEFORM_ATTN, dtype)}_naive",
        grid=(blocks, 1, 1),
        block=(_THREADS, 1, 1),
        shared_bytes=0,
        scalars=plan.scalars,
    )
