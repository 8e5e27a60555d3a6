"""Weights that a kernel reads as they lie in the file: one copy, in huge pages.

At every token the decoder reads all of its weights, and with ordinary pages of 4 KiB much of the
time goes into address translation: at TinyLlama's shape in int4 a token takes 28.4 ms of one
processor with huge pages, 34.9 with ordinary ones and 32.3 from the mapped file, which cannot have
huge ones. So the weights are read once into memory that asks for them, and ONNX Runtime is given
these arrays in place of its own. It uses them where they are.

Only weights of operators whose CPU kernel takes the stored layout are loaded this way. ONNX Runtime
repacks those of its own operators (MatMul, MatMulNBits) into a second copy and drops the mapped
file afterwards; an array of ours it could not drop. Measured with 524 MB on ONNX Runtime 1.32:
mapped and repacked 1.2 times the weights, given and repacked 2.2 times, given and taken as they are
1.0 times. (``add_external_initializers`` copies what it is given; ``add_initializer`` does not.)
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.manifest import check_relative
from visionllm_edge.runtime.ports import Array
from visionllm_edge.runtime.protobuf import BYTES, fields, varint

__all__ = ["StoredTensor", "load_resident", "resident_tensors"]

# Domain and name of the operators, and which of their inputs are weights.
_OPERATORS = {("visionllm", "QuantizedLinear"): (1, 2), ("visionllm", "QuantizedDense"): (1, 2)}

# Field numbers of ONNX's published schema.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OPERATOR, _NODE_DOMAIN = 1, 4, 7
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL = 1, 2, 8, 13
_TYPES = {1: "float32", 2: "uint8", 3: "int8", 10: "float16"}

_HUGE_PAGE_BYTES = 2 * 2**20
_ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a weights file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    location: str
    offset: int

    @property
    def nbytes(self) -> int:
        """Size in the file and in memory."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def resident_tensors(graph: Path) -> list[StoredTensor]:
    """The weights of a graph file that are worth loading this way, in the order of the file.

    A file that is no ONNX model has none; ONNX Runtime says what is wrong with it.
    """
    try:
        return list(_find(memoryview(graph.read_bytes())))
    except (OSError, ValueError, IndexError):
        return []


def load_resident(folder: Path, tensors: Sequence[StoredTensor]) -> dict[str, Array]:
    """Read tensors into one block of memory, with huge pages where the system has them.

    Raises:
        BackendError: a file is missing or ends too early, or the memory cannot be had.
    """
    places, total = [], 0
    for tensor in tensors:
        places.append(total)
        total += -(-tensor.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    block = _block(total)
    out: dict[str, Array] = {}
    opened: dict[str, BinaryIO] = {}
    try:
        for tensor, place in zip(tensors, places, strict=True):
            if tensor.location not in opened:
                check_relative(tensor.location, f"tensor {tensor.name!r}")
                opened[tensor.location] = (folder / tensor.location).open("rb", buffering=0)
            raw = block[place : place + tensor.nbytes]
            _read(opened[tensor.location], tensor, raw)
            out[tensor.name] = raw.view(tensor.dtype).reshape(tensor.shape)
    except OSError as e:
        raise BackendError(
            f"weights of {tensor.name!r}: {tensor.location!r} cannot be read ({e}). "
            "Copy the bundle again."
        ) from e
    finally:
        for file in opened.values():
            file.close()
    return out


def _block(size: int) -> NDArray[np.uint8]:
    """Zeroed memory that starts on a huge page; it lives as long as a view of it."""
    try:
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return np.zeros(size, dtype=np.uint8)
        # Private: pages of a shared mapping belong to a file system in memory, which has its own
        # and usually stricter rule for huge pages.
        area = mmap.mmap(-1, size + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, MemoryError) as e:
        raise BackendError(
            f"weights: {size / 1e6:.0f} MB of memory could not be had ({e}). "
            "Close other programs, or compile with fewer bits."
        ) from e
    # Kernels without huge pages refuse the advice; everything works without it, only slower.
    with contextlib.suppress(OSError):
        area.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(area, dtype=np.uint8)
    start = -whole.ctypes.data % _HUGE_PAGE_BYTES
    return whole[start : start + size]


def _read(file: BinaryIO, tensor: StoredTensor, into: NDArray[np.uint8]) -> None:
    file.seek(tensor.offset)
    rest = into.data
    while rest:
        # One call reads 2 GiB at most on Linux.
        count = file.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise BackendError(
                f"weights of {tensor.name!r}: expected {tensor.nbytes} bytes at {tensor.offset} of "
                f"{tensor.location!r}, the file ends {len(rest)} bytes earlier. "
                "Copy the bundle again."
            )
        rest = rest[count:]


def _find(model: memoryview) -> Iterator[StoredTensor]:
    (graph,) = (value for number, _, value in fields(model) if number == _MODEL_GRAPH)
    assert isinstance(graph, memoryview)
    wanted: set[str] = set()
    tensors: list[StoredTensor] = []
    for number, wire, value in fields(graph):
        if wire != BYTES:
            continue
        assert isinstance(value, memoryview)
        if number == _GRAPH_NODE:
            wanted.update(_weights_of(value))
        elif number == _GRAPH_INITIALIZER:
            tensor = _stored(value)
            if tensor is not None:
                tensors.append(tensor)
    tensors.sort(key=lambda tensor: (tensor.location, tensor.offset))
    yield from (tensor for tensor in tensors if tensor.name in wanted)


def _weights_of(node: memoryview) -> list[str]:
    operator = domain = ""
    inputs: list[str] = []
    for number, _, value in fields(node):
        if number == _NODE_INPUT:
            inputs.append(_text(value))
        elif number == _NODE_OPERATOR:
            operator = _text(value)
        elif number == _NODE_DOMAIN:
            domain = _text(value)
    return [inputs[i] for i in _OPERATORS.get((domain, operator), ())]


def _stored(message: memoryview) -> StoredTensor | None:
    """A tensor that lies in a file in a type that numpy has; None for every other one."""
    name, kind = "", 0
    shape: list[int] = []
    entries: dict[str, str] = {}
    for number, wire, value in fields(message):
        if number == _TENSOR_DIMS:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif number == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif number == _TENSOR_NAME:
            name = _text(value)
        elif number == _TENSOR_EXTERNAL and wire == BYTES:
            assert isinstance(value, memoryview)
            pair = {n: _text(v) for n, _, v in fields(value)}
            entries[pair.get(1, "")] = pair.get(2, "")
    if "location" not in entries or kind not in _TYPES:
        return None
    return StoredTensor(
        name, _TYPES[kind], tuple(shape), entries["location"], int(entries.get("offset", "0"))
    )


def _packed(value: memoryview) -> list[int]:
    out, at = [], 0
    while at < len(value):
        number, at = varint(value, at)
        out.append(number)
    return out


def _text(value: int | memoryview) -> str:
    if isinstance(value, int):
        raise ValueError("a number where a text is expected")
    return str(value, "utf-8")
