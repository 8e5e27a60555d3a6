"""Fresh scenes for an evaluation, the same for everyone who names the same seed.

Scene ``i`` of a seed depends on the seed and on ``i`` only, not on how many scenes are asked for.
The generators carry a tag of their own, so that no training run draws from the same stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from visionllm_edge.runtime.shapes_world import Scene, make_scene

__all__ = ["Sample", "samples"]

# "eval" in ASCII. Any other entropy in front of the seed gives an unrelated stream.
_STREAM = 0x6576616C


@dataclass(frozen=True, eq=False)
class Sample:
    """One evaluation scene and the generator for whatever is asked about it."""

    index: int
    scene: Scene
    rng: np.random.Generator


def samples(seed: int, images: int, *, size_px: int = 128) -> Iterator[Sample]:
    """Make ``images`` scenes of ``size_px`` squared, one at a time.

    Args:
        seed: Not negative.
        images: How many.
        size_px: Width and height of each picture.
    """
    for index in range(images):
        rng = np.random.default_rng([_STREAM, seed, index])
        yield Sample(index, make_scene(rng, width=size_px, height=size_px), rng)
