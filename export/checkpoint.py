"""Reads a checkpoint folder in the official layout, tensor by tensor.

Every key that a component needs is checked by name and shape against the component's structure
before any weight is read.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionllm_edge.export.components.model import VisionLLM, meta_model
from visionllm_edge.export.config import VisionLLMConfig, read_config
from visionllm_edge.export.tensor_files import TensorFiles, check_fit, update_digest
from visionllm_edge.runtime.errors import CheckpointError

__all__ = ["Checkpoint", "canonical_name", "load_model"]

# Parts of the official checkpoint that this compiler does not build (yet).
_OTHER_PARTS = ("region_encoder.", "unipose.", "sd.", "ip2p.")
# Tensors of built parts that take no part in inference, or that are recomputed.
_UNUSED = (
    "vis_encoder.vision_model.post_layernorm.",
    "vis_encoder.vision_model.embeddings.position_ids",
    "gdino.model.mask_embed.",
)
_UNUSED_ENDINGS = ("relative_position_index", "rotary_emb.inv_freq")


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
        super().__init__(folder)

    @cached_property
    def by_canonical_name(self) -> dict[str, str]:
        """Stored name of each tensor, by canonical name; the first of tied copies wins."""
        out: dict[str, str] = {}
        for name in sorted(self.entries):
            out.setdefault(canonical_name(name), name)
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
        found = self.by_canonical_name
        check_fit(
            f"checkpoint '{self.folder}'",
            self.expected(),
            {name: self.entries[stored].shape for name, stored in found.items()},
            ignored=lambda name: _unused(name) or name.startswith(_OTHER_PARTS),
        )

    def fingerprint(self, prefixes: tuple[str, ...] = ("",)) -> str:
        """SHA-256 over names, shapes, dtypes and bytes of the tensors under the prefixes.

        The same weights have the same fingerprint in every file format and in any number of shards.
        """
        digest = hashlib.sha256()
        for canonical, stored in sorted(self.by_canonical_name.items()):
            if canonical.startswith(prefixes) and not _unused(canonical):
                tensor = self.tensor(stored)
                update_digest(digest, canonical, tensor)
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
