"""What a pipeline needs of a bundle's stages: a loaded one by name and size bucket."""

from __future__ import annotations

from typing import Protocol

from visionllm_edge.runtime.backends.base import StageRunner

__all__ = ["Stages"]


class Stages(Protocol):
    """The stages of a bundle."""

    def get(self, name: str, bucket: tuple[int, int] | None = None) -> StageRunner:
        """A stage, loaded when first asked for. Where stages overlap, for any thread.

        Raises:
            BundleError: the bundle has no such stage or bucket.
        """
        ...
