"""The image makers of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.decoder_specs import DiffusionSpec, Making
from visionllm_edge.runtime.diffusion.image_maker import ImageMaker, Prefix, Size
from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.manifest import StageSpec
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
    sizes = _sizes(bundle.manifest.stages, prefix, spec)
    return ImageMaker(stages, prefix, spec, empty.astype(np.float32), sizes=sizes, admit=admit)


def _sizes(
    stages: Mapping[str, StageSpec], prefix: Prefix, spec: DiffusionSpec
) -> tuple[Size, Size] | None:
    """Smallest and largest picture that all stages take; None where none has a limit."""
    found = []
    for stage, name, factor in (
        ("unet", "latents", spec.vae_factor),
        ("vae_decoder", "latents", spec.vae_factor),
        ("vae_encoder", "pixels", 1),
    ):
        entry = stages.get(f"{prefix}_{stage}")
        limits = None if entry is None else (entry.limits or {}).get(name)
        if limits is not None:
            sides = limits.min[-2:], limits.max[-2:]
            found.append([(height * factor, width * factor) for height, width in sides])
    if not found:
        return None
    lows, highs = zip(*found, strict=True)
    return (
        (max(low[0] for low in lows), max(low[1] for low in lows)),
        (min(high[0] for high in highs), min(high[1] for high in highs)),
    )
