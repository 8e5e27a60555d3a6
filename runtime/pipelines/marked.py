"""Regions of a picture on their way into the prompt: masks, and one row of the LLM's input each.

Marking checks everything that a user can get wrong and computes nothing that costs. The rows come
from the `region_encoder` stage, which reads what the vision encoder left of the picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.llm.sequence import RegionRow
from visionllm_edge.runtime.pipelines.picture import Picture
from visionllm_edge.runtime.pipelines.stages import Stages
from visionllm_edge.runtime.regions import MAX_REGIONS, REGIONS_AT_ONCE, Region, model_mask

__all__ = ["Marked", "mark", "region_rows"]

_KEPT = 256


@dataclass(frozen=True)
class Marked:
    """Regions of one picture.

    Attributes:
        picture: what they are regions of.
        masks: bool ``[I, I]`` each, of the vision encoder's input.
        numbers: identify picture and mask, one for each region; see `RegionRow`.
    """

    picture: Picture
    masks: tuple[NDArray[np.bool_], ...]
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        """How many regions."""
        return len(self.masks)

    def pick(self, indices: Sequence[int]) -> Marked:
        """Some of the regions, in this order; one may come twice."""
        return Marked(
            self.picture,
            tuple(self.masks[index] for index in indices),
            tuple(self.numbers[index] for index in indices),
        )


def mark(picture: Picture, regions: Sequence[Region], *, side: int) -> Marked:
    """Turn visual prompts into masks.

    Args:
        picture: what they point at.
        regions: at least one.
        side: pixels per side of the vision encoder's input.

    Raises:
        InputError: no region or too many, or one that is empty or outside the picture.
    """
    if not isinstance(regions, Sequence):
        raise InputError(
            f"regions: expected a list of them, got {type(regions).__name__}. Pass [Box(...)]."
        )
    if not 1 <= len(regions) <= MAX_REGIONS:
        raise InputError(
            f"regions: expected 1 to {MAX_REGIONS}, got {len(regions)}. "
            f"{'Mark something' if not regions else 'Ask in several calls'}."
        )
    masks = tuple(model_mask(region, picture.size, side) for region in regions)
    return Marked(picture, masks, tuple(_number(picture, mask) for mask in masks))


def region_rows(stages: Stages, marked: Marked) -> list[RegionRow]:
    """The rows of the regions, in order; what was computed for the picture before is found again.

    The vision encoder must have seen the picture.
    """
    seen, known = marked.picture.vision_states, marked.picture.region_rows
    assert seen is not None, "the vision encoder runs first"
    missing = {
        number: mask
        for number, mask in zip(marked.numbers, marked.masks, strict=True)
        if number not in known
    }
    if len(known) + len(missing) > _KEPT:
        known.clear()
        missing = dict(zip(marked.numbers, marked.masks, strict=True))
    wanted = list(missing.items())
    for first in range(0, len(wanted), REGIONS_AT_ONCE):
        some = wanted[first : first + REGIONS_AT_ONCE]
        tokens_rD = stages.get("region_encoder").run(  # noqa: N806 (axis letters)
            {
                "pixels": seen.pixels,
                "masks": np.stack([mask for _, mask in some])[:, None].astype(np.float32),
                "level1": seen.level1,
                "states": seen.states,
            }
        )["region_tokens"]
        # The stage may hand out the same buffer again.
        rows = np.array(tokens_rD, np.float32)
        known.update({number: row for (number, _), row in zip(some, rows, strict=True)})
    return [RegionRow(number, known[number]) for number in marked.numbers]


def _number(picture: Picture, mask: NDArray[np.bool_]) -> int:
    content = picture.key.encode() + np.packbits(mask).tobytes()
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2
