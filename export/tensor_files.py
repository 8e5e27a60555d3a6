"""The tensors of a checkpoint folder by name, read one at a time.

``*.safetensors`` are read directly; ``*.bin`` shards, memory-mapped, only through
``torch.load(weights_only=True)``. Nothing is loaded before it is asked for. What the tensors mean
is the business of the reader of a family (``checkpoint``, ``llm.hf_folder``).
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from visionllm_edge.runtime.errors import CheckpointError

__all__ = ["Entry", "TensorFiles", "check_fit", "update_digest"]

_SAFE_INDEX, _BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
_SAFE_FILE, _BIN_FILE = "model.safetensors", "pytorch_model.bin"
_SHOWN = 12


@dataclass(frozen=True)
class Entry:
    """Where a tensor is: shape, dtype as text, file name."""

    shape: tuple[int, ...]
    dtype: str
    file: str


class TensorFiles:
    """The weight files of a folder.

    Attributes:
        folder: where they are.
        entries: every stored tensor by its stored name.
    """

    def __init__(self, folder: Path) -> None:
        """Read the list of tensors.

        Raises:
            CheckpointError: no weights, an unreadable file, or a file outside the folder.
        """
        self.folder = folder
        self._bins: dict[str, Mapping[str, Tensor]] = {}
        self._safes: dict[str, Any] = {}
        self.entries: dict[str, Entry] = dict(self._list())

    def tensor(self, stored_name: str) -> Tensor:
        """One tensor as stored (dtype and all).

        Raises:
            KeyError: no such tensor.
        """
        entry = self.entries[stored_name]
        if entry.file.endswith(".bin"):
            return self._bin(entry.file)[stored_name]
        out: Tensor = self._safe(entry.file).get_tensor(stored_name)
        return out

    def _list(self) -> Iterator[tuple[str, Entry]]:
        files = self._files()
        for file in files:
            if file.endswith(".safetensors"):
                try:
                    opened = self._safe(file)
                    for name in opened.keys():  # noqa: SIM118  (not a dict)
                        part = opened.get_slice(name)
                        yield name, Entry(tuple(part.get_shape()), part.get_dtype(), file)
                except (SafetensorError, OSError) as e:
                    raise CheckpointError(
                        f"checkpoint file '{file}': expected safetensors, got: {e}. "
                        "Copy the file again."
                    ) from e
            else:
                for name, tensor in self._bin(file).items():
                    yield name, Entry(tuple(tensor.shape), str(tensor.dtype)[6:], file)

    def _files(self) -> list[str]:
        for index in (_SAFE_INDEX, _BIN_INDEX):
            path = self.folder / index
            if path.is_file():
                try:
                    named = sorted(set(json.loads(path.read_text("utf-8"))["weight_map"].values()))
                except (ValueError, KeyError, TypeError, AttributeError) as e:
                    raise CheckpointError(
                        f"checkpoint file '{index}': expected JSON with a weight_map, got: {e!r}."
                    ) from e
                for file in named:
                    self._inside(index, file)
                return named
        for file in (_SAFE_FILE, _BIN_FILE):
            if (self.folder / file).is_file():
                return [file]
        raise CheckpointError(
            f"checkpoint '{self.folder}': no weights found. Expected {_SAFE_FILE}, {_SAFE_INDEX}, "
            f"{_BIN_FILE} or {_BIN_INDEX}."
        )

    def _inside(self, index: str, file: object) -> None:
        kinds = (".safetensors", ".bin")
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(kinds):
            raise CheckpointError(
                f"checkpoint file '{index}': expected names of .safetensors or .bin files in the "
                f"same folder, got {file!r}."
            )
        if not (self.folder / file).is_file():
            raise CheckpointError(
                f"checkpoint '{self.folder}': the shard '{file}' named by {index} is missing."
            )

    def _safe(self, file: str) -> Any:
        """A mapped file; its header is read once."""
        if file not in self._safes:
            self._safes[file] = safe_open(self.folder / file, framework="pt")
        return self._safes[file]

    def _bin(self, file: str) -> Mapping[str, Tensor]:
        if file not in self._bins:
            try:
                data = self._load(self.folder / file)
            except Exception as e:
                reason = (str(e).splitlines() or [type(e).__name__])[0]
                raise CheckpointError(
                    f"checkpoint file '{file}': expected a file of plain tensors, got: {reason} "
                    "It was not loaded: only tensors are accepted."
                ) from e
            if not isinstance(data, dict) or not all(
                isinstance(k, str) and isinstance(v, Tensor) for k, v in data.items()
            ):
                raise CheckpointError(
                    f"checkpoint file '{file}': expected a dictionary of tensors, "
                    f"got {type(data).__name__}."
                )
            self._bins[file] = data
        return self._bins[file]

    @staticmethod
    def _load(path: Path) -> object:
        """The content of a shard; a file of the format before zip files cannot be mapped."""
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def check_fit(
    source: str,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    *,
    ignored: Callable[[str], bool],
    known: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> None:
    """Compare the tensors of a source with those that its configuration asks for.

    Args:
        source: what to call it.
        expected: shape by name.
        found: shape by name.
        ignored: whether a tensor that nobody asked for is known to be of no use.
        known: shape by name of tensors that may be there, such as copies of tied ones.

    Raises:
        CheckpointError: missing, mis-shaped or unknown keys, by name.
    """
    missing = sorted(set(expected) - set(found))
    allowed = {**known, **expected}
    wrong = [
        f"{name} (expected {list(shape)}, got {list(found[name])})"
        for name, shape in sorted(allowed.items())
        if name in found and found[name] != shape
    ]
    unknown = sorted(name for name in found if name not in allowed and not ignored(name))
    problems = [
        f"{len(names)} {what}: {_shown(names)}"
        for names, what in ((missing, "missing"), (wrong, "mis-shaped"), (unknown, "unknown"))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{source}: keys do not fit config.json: {'; '.join(problems)}. "
            "Check that config and weights belong together."
        )


def update_digest(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    """Add a tensor's name, shape, dtype and bytes to a digest."""
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
