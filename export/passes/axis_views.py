"""Where the axes of a value went: views through Reshape, Transpose, Squeeze and Unsqueeze.

A view says for every axis of a value which parts of the axes of another value it is made of. A part
is split when a Reshape cuts it, for all views that hold it; parts of length 1 are left out. Lengths
may hold symbols, so that a view knows 16 heads of 64 in an axis of 1024 beside a batch of `n`.
Knows nothing of attention.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

__all__ = ["VIEW_OPS", "Part", "Size", "View", "lengths_of", "own_view", "parts_of", "seen_through"]

VIEW_OPS = frozenset({"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})

_INTEGER_OPS = frozenset(
    {"Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
)
_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Size:
    """A length: a whole number times symbols."""

    number: int
    symbols: tuple[str, ...] = ()

    def __mul__(self, other: Size) -> Size:
        """The product."""
        symbols = tuple(sorted((*self.symbols, *other.symbols)))
        return Size(self.number * other.number, symbols)

    def over(self, other: Size) -> Size | None:
        """The quotient, or None if it is not a whole number whatever the symbols stand for."""
        left = Counter(self.symbols)
        left.subtract(other.symbols)
        if other.number == 0 or self.number % other.number or min(left.values(), default=0) < 0:
            return None
        return Size(self.number // other.number, tuple(sorted(left.elements())))


ONE = Size(1)


@dataclass(eq=False)
class Part:
    """A part of an axis; `pieces` once it was split."""

    size: Size
    pieces: tuple[Part, ...] = ()


View = list[list[Part]]
"""Axis -> its parts, outermost first."""


def parts_of(axes: Sequence[Sequence[Part]]) -> list[Part]:
    """All parts in order, as they are split now."""
    out: list[Part] = []
    for axis in axes:
        for part in axis:
            if part.pieces:
                out += parts_of([part.pieces])
            elif part.size != ONE:
                out.append(part)
    return out


def length(axis: Sequence[Part]) -> Size:
    """Product of the parts."""
    size = ONE
    for part in axis:
        size = size * part.size
    return size


def lengths_of(view: View) -> list[Size]:
    """Length of every axis."""
    return [length(axis) for axis in view]


def own_view(value: ir.Value) -> View | None:
    """A value as a view of itself; None if a length is unknown."""
    sizes = _shape(value)
    return None if sizes is None else [[Part(size)] for size in sizes]


def seen_through(view: View, node: ir.Node) -> View | None:
    """What a node of `VIEW_OPS` makes of a view of its input; None if that is not certain."""
    if node.op_type == "Identity":
        return view
    if node.op_type == "Transpose":
        perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        return [view[axis] for axis in perm] if perm is not None else view[::-1]
    shape = _integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if shape is None:
        return None
    if node.op_type == "Reshape":
        keep = "allowzero" not in node.attributes or not node.attributes["allowzero"].as_int()
        return _reshaped(view, shape, keep_zeros=keep)
    axes = [size.number for size in shape]
    if node.op_type == "Unsqueeze":
        rank = len(view) + len(axes)
        new = {axis % rank for axis in axes}
        old = iter(view)
        return [[] if axis in new else next(old) for axis in range(rank)]
    gone = {axis % len(view) for axis in axes}
    if any(parts_of([view[axis]]) for axis in gone):
        return None
    return [parts for axis, parts in enumerate(view) if axis not in gone]


def _reshaped(view: View, shape: Sequence[Size], *, keep_zeros: bool) -> View | None:
    sizes = list(shape)
    if Size(0) in sizes:
        if not keep_zeros or (len(sizes) > len(view) and Size(0) in sizes[len(view) :]):
            return None
        sizes = [length(view[i]) if size == Size(0) else size for i, size in enumerate(sizes)]
    parts = parts_of(view)
    if Size(-1) in sizes:
        known = ONE
        for size in sizes:
            known = known * (ONE if size == Size(-1) else size)
        rest = length(parts).over(known)
        if rest is None or sizes.count(Size(-1)) > 1:
            return None
        sizes = [rest if size == Size(-1) else size for size in sizes]
    out = []
    for size in sizes:
        axis = _taken(parts, size)
        if axis is None:
            return None
        out.append(axis)
    return None if parts else out


def _taken(parts: list[Part], size: Size) -> list[Part] | None:
    """Takes parts of that length off the front, and splits the last one if it is too long."""
    axis: list[Part] = []
    while size != ONE:
        if not parts:
            return None
        first = parts.pop(0)
        rest = size.over(first.size)
        if rest is not None:
            axis.append(first)
            size = rest
            continue
        behind = first.size.over(size)
        if behind is None:
            return None
        first.pieces = Part(size), Part(behind)
        axis.append(first.pieces[0])
        parts.insert(0, first.pieces[1])
        size = ONE
    return axis


def _shape(value: ir.Value) -> list[Size] | None:
    if value.shape is None:
        return None
    sizes = []
    for axis in value.shape:
        if isinstance(axis, int):
            sizes.append(Size(axis))
        elif axis.value is not None:
            sizes.append(Size(1, (axis.value,)))
        else:
            return None
    return sizes


def _integers(value: ir.Value | None) -> list[Size] | None:
    """The numbers of a short vector (or the one of a scalar) that says a shape."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return [Size(int(number)) for number in tensor.numpy().reshape(-1)]
    node = value.producer()
    if node is None or node.domain:
        return None
    if node.op_type == "Shape" and node.inputs[0] is not None:
        sizes = _shape(node.inputs[0])
        start, end = (
            node.attributes[name].as_int() if name in node.attributes else default
            for name, default in (("start", 0), ("end", _END))
        )
        return None if sizes is None else sizes[start:end]
    if node.op_type not in _INTEGER_OPS:
        return None
    given = [_integers(value) for value in node.inputs]
    if not given or any(numbers is None for numbers in given):
        return None
    first, *others = [numbers for numbers in given if numbers is not None]
    if node.op_type == "Concat":
        return [size for numbers in (first, *others) for size in numbers]
    if node.op_type in ("Cast", "Identity"):
        return first
    if node.op_type in ("Reshape", "Squeeze", "Unsqueeze") and len(first) == 1:
        return first
    plain = [[size.number for size in numbers] for numbers in others]
    if any(size.symbols for numbers in others for size in numbers):
        return None
    if node.op_type == "Gather" and all(-len(first) <= i < len(first) for i in plain[0]):
        return [first[i] for i in plain[0]]
    if node.op_type == "Slice" and plain[2:] in ([], [[0]], [[0], [1]]):
        return first[plain[0][0] : plain[1][0]]
    return None
