"""What the table of an operator says about a call: axes of the outputs, checks of shapes and types.

Pure Python on `SemanticOp` data, shared by every TensorRT form of an operator. A size that is not
known yet (a dynamic axis while a graph is parsed) is negative.
"""

from __future__ import annotations

from collections.abc import Sequence

from visionllm_edge.plugins.semantic_op import OpPort, SemanticOp

__all__ = ["AxisSource", "check_shapes", "find_combination", "output_axes", "value_dtype"]

AxisSource = int | tuple[int, int]
"""Where the size of an output's axis comes from: a fixed size, or (input, axis)."""


def output_axes(op: SemanticOp) -> tuple[tuple[AxisSource, ...], ...]:
    """For each output and axis, a fixed size or the (input, axis) whose letter it has.

    Raises:
        ValueError: a letter of an output that stands on no input as a whole axis.
    """
    sources = _sources(op)
    result: list[tuple[AxisSource, ...]] = []
    for port in op.outputs:
        axes: list[AxisSource] = []
        for letter in port.shape:
            if isinstance(letter, str) and letter not in sources:
                raise ValueError(
                    f"{op.name}: output '{port.name}' has axis '{letter}', expected a letter of an "
                    f"input ({', '.join(sources)}). This operator cannot be a TensorRT plugin."
                )
            axes.append(sources[letter] if isinstance(letter, str) else letter)
        result.append(tuple(axes))
    return tuple(result)


def find_combination(op: SemanticOp, dtypes: Sequence[str]) -> int | None:
    """Index of the first type combination that starts with these types.

    Args:
        op: the operator.
        dtypes: types of the first inputs and outputs, in order; a prefix of the ports is enough.
    """
    for index, combination in enumerate(op.type_combinations):
        if combination[: len(dtypes)] == tuple(dtypes):
            return index
    return None


def value_dtype(op: SemanticOp, combination: int) -> str:
    """Element type of the operator's values in a combination: that of its first input."""
    return op.type_combinations[combination][0]


def check_shapes(op: SemanticOp, shapes: Sequence[Sequence[int]]) -> None:
    """Compare shapes with the letters.

    Args:
        op: the operator.
        shapes: of the inputs, or of the inputs and then the outputs.

    Raises:
        ValueError: a wrong count, rank or fixed size, or one letter with two sizes.
    """
    ports = op.inputs + op.outputs
    if len(shapes) not in (len(op.inputs), len(ports)):
        raise ValueError(
            f"{op.name}: expected {len(op.inputs)} inputs and {len(op.outputs)} outputs, "
            f"got {len(shapes)} tensors. Export the graph again."
        )
    sizes: dict[str, int] = {}
    for port, shape in zip(ports, shapes, strict=False):
        if len(shape) != len(port.shape):
            raise ValueError(
                f"{op.name}: '{port.name}' expected {_letters(port)}, got rank {len(shape)}: "
                f"{tuple(shape)}. Export the graph again."
            )
        for axis, (letter, size) in enumerate(zip(port.shape, shape, strict=True)):
            wanted = letter if isinstance(letter, int) else sizes.get(letter, -1)
            if size >= 0 and wanted >= 0 and size != wanted:
                raise ValueError(
                    f"{op.name}: '{port.name}' {_letters(port)} expected {wanted} on axis {axis}, "
                    f"got {tuple(shape)}. Check the shapes of the node's inputs."
                )
            if isinstance(letter, str) and size >= 0:
                sizes[letter] = size


def _sources(op: SemanticOp) -> dict[str, tuple[int, int]]:
    """Each letter's first place among the inputs."""
    sources: dict[str, tuple[int, int]] = {}
    for index, port in enumerate(op.inputs):
        for axis, letter in enumerate(port.shape):
            if isinstance(letter, str):
                sources.setdefault(letter, (index, axis))
    return sources


def _letters(port: OpPort) -> str:
    return f"[{', '.join(str(axis) for axis in port.shape)}]"
