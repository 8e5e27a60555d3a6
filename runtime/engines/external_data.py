"""The files that an ONNX graph reads its weights from, and the check that they are safe to read.

TensorRT's parser opens every location that a graph names and follows symbolic links; onnx and ONNX
Runtime refuse links. A device that builds engines has no onnx package, so this module knows the
numbers of ONNX's published schema that lead to a tensor, and skips everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.manifest import check_relative
from visionllm_edge.runtime.protobuf import BYTES, fields

__all__ = ["ExternalTensor", "check_external_data", "external_tensors"]

# Message -> field number -> message of that field. Tensors sit in initializers (plain and sparse)
# and in attributes of nodes, in graphs within attributes, and in function bodies.
_LEADS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 8, 13, 14


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor outside of the graph file; `length` None means to the end of the file."""

    name: str
    location: str
    offset: int = 0
    length: int | None = None


def external_tensors(graph: Path) -> list[ExternalTensor]:
    """Every tensor that a graph file keeps elsewhere.

    Raises:
        BundleError: the file cannot be read or is no protobuf message.
    """
    try:
        content = memoryview(graph.read_bytes())
        return list(_tensors(content, "model"))
    except (OSError, ValueError, IndexError, RecursionError) as e:
        raise BundleError(
            f"graph {graph.name!r}: cannot be read as an ONNX model ({e}). Make the kit again."
        ) from e


def check_external_data(graph: Path, root: Path) -> list[str]:
    """Refuse weights that are not plain files beside the graph, inside of a folder.

    Args:
        graph: the ONNX file.
        root: the kit; neither graph nor weights may be a link or lie outside.

    Returns:
        Paths of the weights files relative to `root`, sorted.

    Raises:
        BundleError: naming the tensor or file, before anything has been given to TensorRT.
    """
    _refuse_link(graph, root)
    found = set()
    for tensor in external_tensors(graph):
        where = f"graph {graph.name!r}: tensor {tensor.name!r}"
        check_relative(tensor.location, where)
        path = graph.parent / tensor.location
        _refuse_link(path, root)
        if not path.is_file():
            raise BundleError(f"{where}: weights file {tensor.location!r} is missing")
        size = path.stat().st_size
        end = tensor.offset + (tensor.length or 0)
        if end > size:
            raise BundleError(
                f"{where}: expected {end} bytes in {tensor.location!r}, it has {size}. "
                "Copy the kit again."
            )
        found.add(path.relative_to(root).as_posix())
    return sorted(found)


def _refuse_link(path: Path, root: Path) -> None:
    for part in (path, *path.parents):
        if part == root:
            return
        if part.is_symlink():
            raise BundleError(
                f"{path.name!r}: {part.name!r} is a symbolic link, which TensorRT would follow; "
                "expected regular files inside the kit. Copy the kit again without links."
            )
    raise BundleError(f"{path.name!r}: expected a file inside the kit, it lies outside")


def _tensors(message: memoryview, kind: str) -> Iterator[ExternalTensor]:
    if kind == "tensor":
        tensor = _tensor(message)
        if tensor is not None:
            yield tensor
        return
    leads = _LEADS[kind]
    for number, wire, value in fields(message):
        if wire == BYTES and number in leads:
            assert isinstance(value, memoryview)
            yield from _tensors(value, leads[number])


def _tensor(message: memoryview) -> ExternalTensor | None:
    name, external, entries = "", False, {}
    for number, _, value in fields(message):
        if number == _TENSOR_NAME and isinstance(value, memoryview):
            name = str(value, "utf-8", "replace")
        elif number == _TENSOR_LOCATION:
            external = value == 1
        elif number == _TENSOR_EXTERNAL and isinstance(value, memoryview):
            pair = {n: str(v, "utf-8") for n, _, v in fields(value) if isinstance(v, memoryview)}
            # A parser may take the last of two equal keys, or the first: neither is honest.
            if pair.get(1, "") in entries:
                raise ValueError(f"tensor {name!r} names {pair.get(1)!r} twice")
            entries[pair.get(1, "")] = pair.get(2, "")
    if not external and not entries:
        return None
    length = entries.get("length")
    return ExternalTensor(
        name=name,
        location=entries.get("location", ""),
        offset=_number(entries.get("offset", "0")),
        length=None if length is None else _number(length),
    )


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"expected a number of bytes, got {text!r}")
    return int(text)
