"""Reads a checkpoint folder in the official layout, tensor by tensor.

``*.safetensors`` are read directly; ``*.bin`` shards, memory-mapped, only through
``torch.load(weights_only=True)``. Nothing is loaded before it is asked for. Every key that a
component needs is checked by name and shape against the component's structure before any weight is
read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from visionllm_edge.export.components.model import VisionLLM, meta_model
from visionllm_edge.export.config import VisionLLMConfig, read_config
from visionllm_edge.runtime.errors import CheckpointError

__all__ = ["Checkpoint", "Entry", "canonical_name", "load_model"]

_SAFE_INDEX, _BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
_SAFE_FILE, _BIN_FILE = "model.safetensors", "pytorch_model.bin"

# Parts of the official checkpoint that this compiler does not build (yet).
_OTHER_PARTS = ("region_encoder.", "unipose.", "sd.", "ip2p.")
# Tensors of built parts that take no part in inference, or that are recomputed.
_UNUSED = (
    "vis_encoder.vision_model.post_layernorm.",
    "vis_encoder.vision_model.embeddings.position_ids",
    "gdino.model.mask_embed.",
)
_UNUSED_ENDINGS = ("relative_position_index", "rotary_emb.inv_freq")
_SHOWN = 8


@dataclass(frozen=True)
class Entry:
    """Where a tensor is: shape, dtype as text, file name."""

    shape: tuple[int, ...]
    dtype: str
    file: str


def canonical_name(name: str) -> str:
    """The one name of a tied tensor: heads are kept as ``bbox_embed.0`` and ``mask_embed.0``."""
    for head in ("bbox_embed", "mask_embed"):
        for prefix in ("gdino.model.decoder.", "gdino."):
            start = f"{prefix}{head}."
            if name.startswith(start):
                index, _, rest = name[len(start) :].partition(".")
                if index.isdigit():
                    return f"gdino.{head}.0.{rest}"
    return name


class Checkpoint:
    """An opened checkpoint folder.

    Attributes:
        folder: where it is.
        config: its parsed configuration.
        entries: every stored tensor by its stored name.
    """

    def __init__(self, folder: Path) -> None:
        """Read the config and the list of tensors.

        Raises:
            CheckpointError: no weights, an unreadable file, or a file outside the folder.
            ConfigError: a configuration that is not supported.
        """
        self.folder = folder
        self.config: VisionLLMConfig = read_config(folder)
        self._bins: dict[str, Mapping[str, Tensor]] = {}
        self.entries: dict[str, Entry] = dict(self._list())

    def _list(self) -> Iterator[tuple[str, Entry]]:
        files = self._files()
        for file in files:
            if file.endswith(".safetensors"):
                try:
                    with safe_open(self.folder / file, framework="pt") as f:
                        for name in f.keys():  # noqa: SIM118  (not a dict)
                            part = f.get_slice(name)
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

    def _bin(self, file: str) -> Mapping[str, Tensor]:
        if file not in self._bins:
            try:
                data = torch.load(
                    self.folder / file, map_location="cpu", weights_only=True, mmap=True
                )
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

    @cached_property
    def by_canonical_name(self) -> dict[str, str]:
        """Stored name of each tensor, by canonical name; the first of tied copies wins."""
        out: dict[str, str] = {}
        for name in sorted(self.entries):
            out.setdefault(canonical_name(name), name)
        return out

    def tensor(self, stored_name: str) -> Tensor:
        """One tensor as stored (dtype and all).

        Raises:
            KeyError: no such tensor.
        """
        entry = self.entries[stored_name]
        if entry.file.endswith(".bin"):
            return self._bin(entry.file)[stored_name]
        with safe_open(self.folder / entry.file, framework="pt") as f:
            out: Tensor = f.get_tensor(stored_name)
            return out

    def expected(self) -> dict[str, tuple[int, ...]]:
        """Canonical names and shapes that the built components need, from the config alone."""
        return {
            canonical_name(name): tuple(tensor.shape)
            for name, tensor in meta_model(self.config).state_dict().items()
            if not _unused(name)
        }

    def check(self) -> None:
        """Compare the stored keys with what the config asks for.

        Raises:
            CheckpointError: missing, mis-shaped or unknown keys, by name.
        """
        expected, found = self.expected(), self.by_canonical_name
        problems = []
        missing = sorted(set(expected) - set(found))
        if missing:
            problems.append(f"{len(missing)} missing: {_shown(missing)}")
        wrong = [
            f"{name} (expected {list(expected[name])}, got {list(self.entries[found[name]].shape)})"
            for name in sorted(expected)
            if name in found and self.entries[found[name]].shape != expected[name]
        ]
        if wrong:
            problems.append(f"{len(wrong)} mis-shaped: {_shown(wrong)}")
        extra = sorted(
            name
            for name in found
            if name not in expected and not _unused(name) and not name.startswith(_OTHER_PARTS)
        )
        if extra:
            problems.append(f"{len(extra)} unknown: {_shown(extra)}")
        if problems:
            raise CheckpointError(
                f"checkpoint '{self.folder}': keys do not fit config.json: {'; '.join(problems)}. "
                "Check that config and weights belong together."
            )

    def fingerprint(self, prefixes: tuple[str, ...] = ("",)) -> str:
        """SHA-256 over names, shapes, dtypes and bytes of the tensors under the prefixes.

        The same weights have the same fingerprint in every file format and in any number of shards.
        """
        digest = hashlib.sha256()
        for canonical, stored in sorted(self.by_canonical_name.items()):
            if canonical.startswith(prefixes) and not _unused(canonical):
                tensor = self.tensor(stored)
                digest.update(f"{canonical} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
                digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        return f"sha256:{digest.hexdigest()}"


def load_model(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> VisionLLM:
    """The built components with the checkpoint's weights, in eval mode.

    Raises:
        CheckpointError: see :meth:`Checkpoint.check`; or copies of a tied tensor differ.
    """
    checkpoint.check()
    _refuse_untied(checkpoint)
    model = VisionLLM(checkpoint.config)
    stored = checkpoint.by_canonical_name
    with torch.no_grad():
        for name, target in _tensors(model).items():
            canonical = canonical_name(name)
            if not _unused(name):
                target.copy_(checkpoint.tensor(stored[canonical]))
            elif torch.is_floating_point(target):
                target.zero_()
    return model.to(dtype).eval().requires_grad_(False)


def _refuse_untied(checkpoint: Checkpoint) -> None:
    """One head serves all decoder layers, so its copies under other names must not differ."""
    for name in sorted(checkpoint.entries):
        kept = checkpoint.by_canonical_name[canonical_name(name)]
        if name != kept and not torch.equal(
            checkpoint.tensor(name).float(), checkpoint.tensor(kept).float()
        ):
            raise CheckpointError(
                f"checkpoint '{checkpoint.folder}': {name} differs from {kept}, expected copies of "
                "one tensor. Decoders with a head of their own per layer are not supported."
            )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    return state


def _unused(name: str) -> bool:
    return name.startswith(_UNUSED) or name.endswith(_UNUSED_ENDINGS)


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
