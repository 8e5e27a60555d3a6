"""Move large initializers into one file that all variants of a stage share.

Size buckets of a stage hold the same weights: equal content is written once, whatever its name.
Offsets are aligned to a page, so that a runtime can map a tensor straight from the file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType

import onnx_ir as ir

__all__ = ["MIN_BYTES", "WeightFile"]

MIN_BYTES = 1024
"""Smaller initializers stay in the graph, where shape inference can read them."""

_ALIGNMENT_BYTES = 4096
_SMALL_ALIGNMENT_BYTES = 64


class WeightFile:
    """The weights of one stage, written as graphs are given to it. Use as a context manager.

    Args:
        path: file to create, beside the graphs that refer to it.
    """

    def __init__(self, path: Path) -> None:
        """Create the file."""
        self.path = path
        self._file = path.open("wb")
        self._offsets: dict[str, int] = {}
        self._end = 0

    def __enter__(self) -> WeightFile:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    def take(self, model: ir.Model) -> int:
        """Move the large initializers of a model into the file; returns how many were new.

        The model's graph file must be saved in the same folder as the weights file.
        """
        new = 0
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < MIN_BYTES or self._holds(tensor):
                continue
            content = tensor.tobytes()
            digest = hashlib.sha256(content).hexdigest()
            if digest not in self._offsets:
                self._offsets[digest] = self._append(content)
                new += 1
            value.const_value = ir.ExternalTensor(
                self.path.name,
                self._offsets[digest],
                len(content),
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
                base_dir=self.path.parent,
            )
        self._file.flush()
        return new

    def _holds(self, tensor: ir.TensorProtocol) -> bool:
        """Whether a tensor was taken before and lies in this file: it need not be read again."""
        return (
            isinstance(tensor, ir.ExternalTensor)
            and str(tensor.location) == self.path.name
            and Path(tensor.base_dir) == self.path.parent
        )

    def _append(self, content: bytes) -> int:
        large = len(content) >= _ALIGNMENT_BYTES
        alignment = _ALIGNMENT_BYTES if large else _SMALL_ALIGNMENT_BYTES
        offset = -(-self._end // alignment) * alignment
        self._file.write(b"\0" * (offset - self._end))
        self._file.write(content)
        self._end = offset + len(content)
        return offset
