"""The image makers of a bundle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.decoder_specs import Making
from visionllm_edge.runtime.diffusion.image_maker import ImageMaker, Prefix
from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.pipelines.stages import Stages

__all__ = ["image_maker"]


def image_maker(
    bundle: Bundle,
    stages: Stages,
    which: Making,
    admit: Callable[[], None] | None = None,
) -> ImageMaker | None:
    """What makes pictures (``generate``) or changes them (``edit``); None without its stages.

    Args:
        bundle: an opened bundle.
        stages: its stages, or others of the same names.
        which: of the two.
        admit: as for :class:`ImageMaker`.

    Raises:
        BundleError: the empty prompt's table has another shape than the manifest says.
    """
    model = bundle.manifest.model
    spec = model.generation if which == "generate" else model.editing
    if spec is None:
        return None
    empty = bundle.array(spec.empty_prompt)
    expected = (spec.condition_tokens, spec.condition_width)
    if empty.shape != expected:
        raise BundleError(
            f"bundle '{bundle.root.name}': table {spec.empty_prompt!r} expected shape "
            f"{list(expected)}, got {list(empty.shape)}. Compile the checkpoint again."
        )
    prefix: Prefix = "gen" if which == "generate" else "edit"
    return ImageMaker(stages, prefix, spec, empty.astype(np.float32), admit=admit)
