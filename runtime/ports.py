"""Ports: the named, typed ends of a stage, and the check of arrays against them.

A shape holds numbers and symbols. A symbol stands for one number per call: an axis called ``S`` in
two inputs must have the same length in both. This module knows numpy and nothing of backends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from visionllm_edge.runtime.errors import BackendError

__all__ = [
    "DTYPES",
    "Array",
    "DeviceTensor",
    "Port",
    "StagePorts",
    "Tensor",
    "bind_inputs",
    "numpy_dtype",
    "resolve_shape",
    "shape_text",
]

DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")

Array = npt.NDArray[np.generic]


class DeviceTensor(Protocol):
    """An array that a backend left in its device's memory; numpy reads it by copying it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As of a numpy array."""
        ...

    @property
    def element_type(self) -> str:
        """One of ``DTYPES``."""
        ...

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """A copy on the host."""
        ...


Tensor = Array | DeviceTensor


@dataclass(frozen=True)
class Port:
    """One input or output of a stage.

    Attributes:
        name: as in the graph.
        dtype: one of ``DTYPES``.
        shape: an int is fixed, a str is a symbol. Every axis is at least 1.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        """Refuse what no array could match."""
        if not self.name:
            raise ValueError("port without a name")
        if self.dtype not in DTYPES:
            raise ValueError(
                f"port {self.name!r}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}"
            )
        for axis in self.shape:
            # bool is an int to Python, and an axis of length True is a mistake.
            good = not isinstance(axis, bool) and (axis >= 1 if isinstance(axis, int) else axis)
            if not good:
                raise ValueError(
                    f"port {self.name!r}: axis {axis!r} is neither a positive number nor a symbol"
                )

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types, as in the manifest."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    def __str__(self) -> str:
        """As in messages and listings: ``pixels [1, 3, H, W] float32``."""
        return f"{self.name} {shape_text(self.shape)} {self.dtype}"


@dataclass(frozen=True)
class StagePorts:
    """The ends of one stage; ``stage`` is the name that errors speak of."""

    stage: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def shape_text(shape: Sequence[int | str]) -> str:
    """``[1, 3, H, W]``: symbols without quotes."""
    return "[" + ", ".join(str(axis) for axis in shape) + "]"


def numpy_dtype(dtype: str) -> np.dtype[np.generic]:
    """How numpy holds a port's elements: numpy has no bfloat16, whose bits travel as uint16."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def resolve_shape(port: Port, symbols: Mapping[str, int]) -> tuple[int, ...] | None:
    """The port's shape in numbers, or None while one of its symbols is unknown."""
    axes = [symbols.get(axis) if isinstance(axis, str) else axis for axis in port.shape]
    known = tuple(axis for axis in axes if axis is not None)
    return known if len(known) == len(axes) else None


def bind_inputs(
    stage: str,
    ports: Sequence[Port],
    inputs: Mapping[str, Tensor],
    known: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Check arrays against the input ports of a stage; returns the number behind each symbol.

    Args:
        stage: name for messages.
        ports: what the stage takes.
        inputs: what it is given.
        known: symbols whose number is settled already, as a size bucket settles its height.

    Raises:
        BackendError: an input is missing or unknown, or has another dtype or shape.
    """
    missing = [port.name for port in ports if port.name not in inputs]
    unknown = sorted(inputs.keys() - {port.name for port in ports})
    if missing or unknown:
        raise BackendError(
            f"stage {stage!r}: expected inputs {[port.name for port in ports]}, "
            f"missing {missing}, unknown {unknown}"
        )
    symbols = dict(known or {})
    for port in ports:
        _bind_one(stage, port, inputs[port.name], symbols)
    return symbols


def _bind_one(stage: str, port: Port, array: Tensor, symbols: dict[str, int]) -> None:
    if isinstance(array, np.ndarray):
        dtype = array.dtype.name
        same_dtype = array.dtype == numpy_dtype(port.dtype)
    elif hasattr(array, "element_type"):
        dtype = array.element_type
        same_dtype = dtype == port.dtype
    else:
        raise BackendError(
            f"stage {stage!r}: input {port.name!r} expected a numpy array, "
            f"got {type(array).__name__}"
        )
    got = f"got {shape_text(array.shape)} {dtype}"
    expected = f"stage {stage!r}: input {port.name!r} expected {shape_text(port.shape)}"
    if not same_dtype or len(array.shape) != len(port.shape):
        raise BackendError(f"{expected} {port.dtype}, {got}")
    for axis, length in zip(port.shape, array.shape, strict=True):
        if isinstance(axis, int):
            if axis != length:
                raise BackendError(f"{expected} {port.dtype}, {got}")
        elif length < 1:
            raise BackendError(f"{expected} {port.dtype} with {axis} >= 1, {got}")
        elif symbols.setdefault(axis, length) != length:
            raise BackendError(f"{expected} {port.dtype} with {axis} = {symbols[axis]}, {got}")
