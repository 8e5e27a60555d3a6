"""Language models in folders: a LLaMA of its own, and the ``llm.`` part of a VisionLLM v2.

A LLaMA folder may come quantised. Its ``quantization_config`` says how, and ``quantize.imports``
turns the packed tensors of one matrix at a time into blocks; codes and scales stay as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from visionllm_edge.export.checkpoint import Checkpoint
from visionllm_edge.export.config import LlmConfig, llama_config, read_json
from visionllm_edge.export.llm.weights import EMBEDDING, HEAD, expected_shapes
from visionllm_edge.export.quantize.imports import read_scheme
from visionllm_edge.export.quantize.matrix import BlockQuantized
from visionllm_edge.export.tensor_files import TensorFiles, check_fit, update_digest
from visionllm_edge.runtime.errors import CheckpointError, ConfigError

__all__ = ["LlamaFolder", "VisionLLMWeights"]

_UNUSED = ("rotary_emb.inv_freq",)
_PREFIX = "llm."


class LlamaFolder:
    """A folder with ``config.json`` (``model_type`` llama) and its weight files."""

    def __init__(self, folder: Path) -> None:
        """Read the config and the list of tensors; check that they fit.

        Raises:
            CheckpointError: no weights, an unreadable file, or tensors missing or mis-shaped.
            ConfigError: a configuration that is not supported.
        """
        self.folder = folder
        data = read_json(folder)
        self._config = llama_config(data)
        self._files = TensorFiles(folder)
        self._packing = _packing(data)
        self._scheme = None if self._packing is None else read_scheme(self._packing)
        self._packed = self._packed_matrices()
        check_fit(
            f"checkpoint '{folder}'",
            self._stored_shapes(),
            {name: entry.shape for name, entry in self._files.entries.items()},
            ignored=lambda name: name.endswith(_UNUSED) or name == HEAD,
        )

    @property
    def config(self) -> LlmConfig:
        """Sizes and constants."""
        return self._config

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def names(self) -> tuple[str, ...]:
        """Every tensor of the model; ``lm_head.weight`` also when it is tied."""
        return tuple(expected_shapes(self._config))

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored; of a packed matrix the float32 values that it stands for.

        Raises:
            KeyError: no such name.
            CheckpointError: a packed matrix that does not fit, by name.
        """
        blocks = self.quantized(name)
        if blocks is not None:
            return torch.from_numpy(blocks.dequantize())
        return self._files.tensor(self._stored(name))

    def quantized(self, name: str, *, minimums: bool = False) -> BlockQuantized | None:
        """The blocks of a packed matrix; None for plain numbers.

        Raises:
            KeyError: no such name.
            CheckpointError: a packed matrix that does not fit, by name.
        """
        shape = expected_shapes(self._config)[name]
        parts = self._packed.get(self._stored(name))
        if parts is None:
            return None
        assert self._scheme is not None
        tensors = {ending: self._files.tensor(stored) for ending, stored in parts.items()}
        try:
            blocks = self._scheme.matrix(name.removesuffix(".weight"), tensors)
        except (ValueError, IndexError, RuntimeError) as e:  # shapes that no packing has
            raise CheckpointError(
                f"checkpoint '{self.folder}': {name}: expected packed tensors of a "
                f"{list(shape)} matrix, got: {e}. Copy the files again."
            ) from e
        if (blocks.rows, blocks.columns) != shape:
            raise CheckpointError(
                f"checkpoint '{self.folder}': {name}: expected {list(shape)}, got packed tensors "
                f"of [{blocks.rows}, {blocks.columns}]. Check that config and weights belong "
                "together."
            )
        return blocks

    def fingerprint(self) -> str:
        """SHA-256 over the configuration and every tensor; the same in every file format."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self._config}\n".encode())
        if self._packing is not None:
            digest.update(json.dumps(self._packing, sort_keys=True).encode())
        for stored in sorted(self._stored_shapes()):
            update_digest(digest, stored, self._files.tensor(stored))
        return f"sha256:{digest.hexdigest()}"

    def _stored(self, name: str) -> str:
        return EMBEDDING if name == HEAD and self._config.tie_word_embeddings else name

    def _packed_matrices(self) -> dict[str, dict[str, str]]:
        """Stored name by ending for every matrix whose first packed part is there."""
        if self._scheme is None:
            return {}
        found = self._files.entries
        packed = {}
        for name, shape in expected_shapes(self._config).items():
            stem = name.removesuffix("weight")
            if len(shape) == 2 and name not in found and stem + self._scheme.parts[0] in found:
                optional = [e for e in self._scheme.optional if stem + e in found]
                packed[name] = {e: stem + e for e in (*self._scheme.parts, *optional)}
        return packed

    def _stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that is read; those of packed ones are their reader's business."""
        shapes = expected_shapes(self._config)
        if self._config.tie_word_embeddings:
            del shapes[HEAD]
        entries = self._files.entries
        for name, parts in self._packed.items():
            if shapes.pop(name, None) is not None:
                shapes |= {s: entries[s].shape if s in entries else () for s in parts.values()}
        return shapes


def _packing(data: Mapping[str, object]) -> Mapping[str, object] | None:
    """How the checkpoint is quantised, or None; older compressed-tensors use the other name."""
    for field in ("quantization_config", "compression_config"):
        packing = data.get(field)
        if packing is not None and not isinstance(packing, Mapping):
            raise ConfigError(f"config.json: {field}: expected an object, got {packing!r}.")
        if packing:
            return packing
    return None


class VisionLLMWeights:
    """The language model of a VisionLLM v2 checkpoint.

    Attributes:
        checkpoint: the whole folder.
    """

    def __init__(self, source: Path | Checkpoint) -> None:
        """Read the config and the list of tensors; check the keys of the language model.

        Raises:
            CheckpointError: no weights, an unreadable file, or tensors missing or mis-shaped.
            ConfigError: a configuration that is not supported.
        """
        self.checkpoint = source if isinstance(source, Checkpoint) else Checkpoint(source)
        check_fit(
            f"checkpoint '{self.checkpoint.folder}'",
            {_PREFIX + name: shape for name, shape in expected_shapes(self.config).items()},
            {
                name: entry.shape
                for name, entry in self.checkpoint.entries.items()
                if name.startswith(_PREFIX)
            },
            ignored=lambda name: name.endswith(_UNUSED),
        )

    @property
    def config(self) -> LlmConfig:
        """Sizes and constants."""
        return self.checkpoint.config.llm

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.checkpoint.config.name

    def names(self) -> tuple[str, ...]:
        """Every tensor of the language model, without the prefix ``llm.``."""
        return tuple(expected_shapes(self.config))

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored.

        Raises:
            KeyError: no such name.
        """
        return self.checkpoint.tensor(_PREFIX + name)

    def quantized(self, name: str, *, minimums: bool = False) -> BlockQuantized | None:
        """None: the official layout holds plain numbers.

        Raises:
            KeyError: no such name.
        """
        _ = self.checkpoint.entries[_PREFIX + name]
        return None

    def fingerprint(self) -> str:
        """SHA-256 over the configuration and every tensor of the language model."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.config}\n".encode())
        digest.update(self.checkpoint.fingerprint((_PREFIX,)).encode())
        return f"sha256:{digest.hexdigest()}"
