"""Reads a checkpoint folder in the official layout, tensor by tensor.

Every stored key is checked by name and shape against the components' structure before any weight is
read: what a component needs must be there under one of its names, and nothing may be there that the
configuration does not explain.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import VisionLLMConfig, read_config, with_queries
from visionllm_edge.export.official_layout import (
    PARTS,
    canonical_name,
    is_old_buffer,
    is_unused,
    official_shapes,
    tied_sources,
)
from visionllm_edge.export.tensor_files import TensorFiles, check_fit, update_digest
from visionllm_edge.runtime.errors import CheckpointError

__all__ = ["Checkpoint", "canonical_name", "load_model"]


class Checkpoint(TensorFiles):
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
        self.config: VisionLLMConfig = read_config(folder)
        self._fingerprints: dict[tuple[str, ...], str] = {}
        super().__init__(folder)

    def take_queries(self, queries: int) -> None:
        """Let the object decoder follow fewer proposals than the checkpoint has learnt rows for.

        Raises:
            ConfigError: a number that it cannot follow.
        """
        self.config = with_queries(self.config, queries)

    @cached_property
    def by_canonical_name(self) -> dict[str, str]:
        """Stored name of each tensor, by canonical name; the first of tied copies wins."""
        out: dict[str, str] = {}
        for name in sorted(self.entries):
            out.setdefault(self.canonical(name), name)
        return out

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every key that the configuration explains, with its shape."""
        return official_shapes(self.config)

    def canonical(self, name: str) -> str:
        """The one name of a tied tensor."""
        return canonical_name(name, self.config.deployment.tied_prefixes)

    def expected(self) -> dict[str, tuple[int, ...]]:
        """Canonical names and shapes that the components need, from the config alone."""
        return {
            self.canonical(name): shape
            for name, shape in self.shapes.items()
            if not is_unused(name)
        }

    def check(self) -> None:
        """Compare every stored key with what the config asks for.

        Raises:
            CheckpointError: missing, mis-shaped or unknown keys, by name.
        """
        absent = tuple(
            part for part in PARTS if not any(name.startswith(part) for name in self.shapes)
        )
        stored = self.by_canonical_name
        check_fit(
            f"checkpoint '{self.folder}'",
            {stored.get(name, name): shape for name, shape in self.expected().items()},
            {name: entry.shape for name, entry in self.entries.items()},
            known=self.shapes,
            ignored=lambda name: is_old_buffer(name) or name.startswith(absent),
        )

    def parameter(self, name: str) -> Tensor:
        """The tensor of a component's parameter or buffer, as stored.

        Raises:
            KeyError: nothing is stored under any of its names.
        """
        return self.tensor(self.by_canonical_name[self.canonical(name)])

    def weight_count(self) -> int:
        """Weights that the components hold, each tied tensor once."""
        return sum(torch.Size(shape).numel() for shape in self.expected().values())

    def fingerprint(self, prefixes: tuple[str, ...] = ("",)) -> str:
        """SHA-256 over names, shapes, dtypes and bytes of the tensors under the prefixes.

        The same weights have the same fingerprint in every file format and in any number of shards.
        """
        if prefixes not in self._fingerprints:
            tied = self.config.deployment.tied_prefixes
            starts = tuple(start for prefix in prefixes for start in tied_sources(prefix, tied))
            digest = hashlib.sha256()
            for canonical, stored in sorted(self.by_canonical_name.items()):
                if canonical.startswith(starts) and not is_unused(canonical):
                    update_digest(digest, canonical, self.tensor(stored))
            self._fingerprints[prefixes] = f"sha256:{digest.hexdigest()}"
        return self._fingerprints[prefixes]

    def refuse_untied(self) -> None:
        """One head serves all layers of a decoder, so its copies must not differ.

        Raises:
            CheckpointError: two that do, by name.
        """
        for name in sorted(self.entries):
            kept = self.by_canonical_name[self.canonical(name)]
            if name != kept and not is_unused(name) and not self._equal(name, kept):
                raise CheckpointError(
                    f"checkpoint '{self.folder}': {name} differs from {kept}, expected copies of "
                    "one tensor. Decoders with a head of their own per layer are not supported."
                )

    def _equal(self, name: str, other: str) -> bool:
        first, second = self.tensor(name), self.tensor(other)
        if first.data_ptr() == second.data_ptr() and first.dtype == second.dtype:
            return True
        return torch.equal(first.float(), second.float())


def load_model(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> VisionLLM:
    """All components with the checkpoint's weights in memory, in eval mode.

    Raises:
        CheckpointError: see :meth:`Checkpoint.check`; or copies of a tied tensor differ.
    """
    checkpoint.check()
    checkpoint.refuse_untied()
    model = VisionLLM(checkpoint.config)
    with torch.no_grad():
        for name, target in _tensors(model).items():
            if not is_unused(name):
                target.copy_(checkpoint.parameter(name))
            elif torch.is_floating_point(target):
                target.zero_()
    return model.to(dtype).eval().requires_grad_(False)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    return state
