"""A launch as formulas of the sizes that are not known yet, read off the operator's own `launch`.

TensorRT's ahead-of-time form wants grid and scalars as symbolic expressions. `plugins/<op>/cuda.py`
computes them from whole numbers, with branches, and stays the only place that does: here it is
asked at many sizes, and its answers must be of one shape: the same kernel, block and shared memory,
every grid dimension a constant or `ceil(size / step)` of one unknown size, every scalar a constant
or an unknown size. A launch of any other shape is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from visionllm_edge.plugins.cuda.launch import KernelLaunch
from visionllm_edge.plugins.semantic_op import SemanticOp

__all__ = ["CeilDiv", "LaunchFormula", "launch_formula"]

# Sizes to ask at: every remainder of steps up to 64, then sizes far beyond them.
_MAX_STEP = 64
_PROBES = (*range(1, 2 * _MAX_STEP + 2), 255, 256, 257, 511, 900, 1023, 1024, 1025, 4096, 6001)
_BASE = 96
_JOINT_PROBES = (1, 3, 127, 901)


@dataclass(frozen=True)
class CeilDiv:
    """`ceil(size / step)` of an unknown size."""

    letter: str
    step: int

    def at(self, size: int) -> int:
        """The value at a size."""
        return -(-size // self.step)


@dataclass(frozen=True)
class LaunchFormula:
    """One launch for all values of the unknown sizes.

    Attributes:
        kernel: entry point.
        grid: x, y, z.
        block: x, y, z.
        shared_bytes: dynamic shared memory.
        scalars: ints behind the pointers; a string is the letter of an unknown size.
    """

    kernel: str
    grid: tuple[int | CeilDiv, ...]
    block: tuple[int, int, int]
    shared_bytes: int
    scalars: tuple[int | str, ...]

    def at(self, sizes: dict[str, int]) -> KernelLaunch:
        """The launch at given sizes of the unknown letters."""
        x, y, z = (g.at(sizes[g.letter]) if isinstance(g, CeilDiv) else g for g in self.grid)
        return KernelLaunch(
            kernel=self.kernel,
            grid=(x, y, z),
            block=self.block,
            shared_bytes=self.shared_bytes,
            scalars=tuple(sizes[s] if isinstance(s, str) else s for s in self.scalars),
        )


def launch_formula(
    op: SemanticOp,
    launch: Callable[..., KernelLaunch],
    shapes: Sequence[Sequence[int]],
    dtype: str,
) -> LaunchFormula:
    """Read the formula off.

    Args:
        op: the operator.
        launch: its `launch(shapes, dtype, aligned=...)`.
        shapes: of the inputs; -1 where a size is not known.
        dtype: element type of the values.

    Raises:
        ValueError: the launch depends on an unknown size in a way that no formula has.
    """
    known, unknown = _letters(op, shapes)

    def ask(sizes: dict[str, int]) -> KernelLaunch:
        every = {**known, **sizes}
        asked = [
            tuple(axis if isinstance(axis, int) else every[axis] for axis in port.shape)
            for port in op.inputs
        ]
        # TensorRT's tensors start at multiples of 256 bytes.
        return launch(asked, dtype, aligned=True)

    base = dict.fromkeys(unknown, _BASE)
    start = ask(base)
    grid: list[int | CeilDiv] = list(start.grid)
    scalars: list[int | str] = list(start.scalars)
    for letter in unknown:
        answers = {size: ask({**base, letter: size}) for size in _PROBES}
        for axis in range(3):
            values = {size: answer.grid[axis] for size, answer in answers.items()}
            if len(set(values.values())) > 1:
                steps = (size for size in range(1, _MAX_STEP + 1) if values[size] <= 1)
                grid[axis] = CeilDiv(letter, max(steps, default=1))
        for index in range(len(scalars)):
            if len({answer.scalars[index] for answer in answers.values()}) > 1:
                scalars[index] = letter
    formula = LaunchFormula(
        kernel=start.kernel,
        grid=tuple(grid),
        block=start.block,
        shared_bytes=start.shared_bytes,
        scalars=tuple(scalars),
    )
    checks = [{**base, letter: size} for letter in unknown for size in _PROBES]
    checks += [
        dict(zip(unknown, sizes, strict=True))
        for sizes in itertools.product(_JOINT_PROBES, repeat=len(unknown))
    ]
    for sizes in checks:
        if formula.at(sizes) != (answer := ask(sizes)):
            raise ValueError(
                f"{op.name}: at {sizes} the launch is {answer}, the formula {formula} says "
                f"{formula.at(sizes)}. Give the graph fixed sizes for {', '.join(unknown)}, or use "
                "the plugin that runs with Python or C++."
            )
    return formula


def _letters(op: SemanticOp, shapes: Sequence[Sequence[int]]) -> tuple[dict[str, int], list[str]]:
    known: dict[str, int] = {}
    every: dict[str, None] = {}
    for port, shape in zip(op.inputs, shapes, strict=True):
        for axis, size in zip(port.shape, shape, strict=True):
            if isinstance(axis, str):
                every[axis] = None
                if size >= 0:
                    known[axis] = size
    return known, [letter for letter in every if letter not in known]
