"""From shapes to one CUDA launch of prompt pooling. Pure Python; the twin of `launch.cuh`."""

from __future__ import annotations

from collections.abc import Sequence

from visionllm_edge.plugins.cuda.launch import (
    ELEMENT_BYTES,
    MAX_GRID_YZ,
    MAX_INT,
    MAX_SHARED_BYTES,
    KernelLaunch,
    kernel_type,
    require,
)
from visionllm_edge.plugins.grid_sample_prompt_pool.spec import GRID_SAMPLE_PROMPT_POOL

__all__ = ["launch", "launch_naive", "launch_sampled"]

# As in kernel.cuh.
_FOLD_LANES = 16
_FOLD_THREADS = 640
_SAMPLE_LANES = 32
_SAMPLE_THREADS = 256
_NAIVE_THREADS = 128
_COUNT_BYTES = 16
"""The fold kernel's static shared memory: its pixel counter, padded."""


def launch(shapes: Sequence[tuple[int, ...]], dtype: str, *, aligned: bool = True) -> KernelLaunch:
    """Choose kernel, grid and block: the fold, or the sampled form for maps too large for it.

    Args:
        shapes: of the three inputs, in the order of the specification.
        dtype: element type of features and pooled.
        aligned: whether every input and the output start at multiples of 16 bytes.

    Raises:
        ValueError: shapes that contradict each other, an unknown type, or sizes beyond what the
            kernel counts in 32 bits.
    """
    code, scalars = _check(shapes, dtype)
    _, grid_height, grid_width, channels, regions, _, _ = scalars
    vector = aligned and channels * ELEMENT_BYTES[dtype] % 16 == 0
    width = 16 // ELEMENT_BYTES[dtype] if vector else 1
    # Four sums per pair of intervals, later one partial result per thread; one weight per cell.
    sums = max((grid_height + 1) * (grid_width + 1), -(-_FOLD_THREADS * width // 4))
    shared_bytes = 16 * sums + 4 * grid_height * grid_width
    if shared_bytes + _COUNT_BYTES > MAX_SHARED_BYTES:
        return launch_sampled(shapes, dtype)
    return KernelLaunch(
        kernel=f"pool_{code}_fold_{'vec' if vector else 'any'}",
        grid=(-(-channels // (_FOLD_LANES * width)), regions, 1),
        block=(_FOLD_THREADS, 1, 1),
        shared_bytes=shared_bytes,
        scalars=scalars,
    )


def launch_sampled(shapes: Sequence[tuple[int, ...]], dtype: str) -> KernelLaunch:
    """The sampled form, for every size of map."""
    code, scalars = _check(shapes, dtype)
    channels, regions = scalars[3:5]
    return KernelLaunch(
        kernel=f"pool_{code}_sampled",
        grid=(-(-channels // _SAMPLE_LANES), regions, 1),
        block=(_SAMPLE_THREADS, 1, 1),
        shared_bytes=0,
        scalars=scalars,
    )


def launch_naive(shapes: Sequence[tuple[int, ...]], dtype: str) -> KernelLaunch:
    """The control: one thread per output element."""
    code, scalars = _check(shapes, dtype)
    channels, regions = scalars[3:5]
    return KernelLaunch(
        kernel=f"pool_{code}_naive",
        grid=(-(-channels * regions // _NAIVE_THREADS), 1, 1),
        block=(_NAIVE_THREADS, 1, 1),
        shared_bytes=0,
        scalars=scalars,
    )


def _check(shapes: Sequence[tuple[int, ...]], dtype: str) -> tuple[str, tuple[int, ...]]:
    """The kernel's type code and its int arguments."""
    code = kernel_type(GRID_SAMPLE_PROMPT_POOL, dtype)
    sizes = GRID_SAMPLE_PROMPT_POOL.letters(shapes)
    name = GRID_SAMPLE_PROMPT_POOL.name
    scalars = tuple(sizes[letter] for letter in ("N", "Gh", "Gw", "C", "R", "H", "W"))
    # The fold counts a mask line's distances in units of 1 / (2 * pixels), as whole numbers.
    for pixels, cells, axis in ((sizes["H"], sizes["Gh"], "H"), (sizes["W"], sizes["Gw"], "W")):
        require(name, f"{axis} (mask pixels of an axis)", pixels, 16384)
        require(name, f"2 * {axis} * (cells + 2) of an axis", 2 * pixels * (cells + 2), MAX_INT)
    require(name, "Gh * Gw (cells of a map)", sizes["Gh"] * sizes["Gw"], MAX_INT)
    require(name, "C (channels)", sizes["C"], MAX_INT // 2)
    require(name, "R (regions)", sizes["R"], MAX_GRID_YZ)
    return code, scalars
