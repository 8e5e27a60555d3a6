"""What a user pointed at, drawn into the picture: a light tint with an outline for each region."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from visionllm_edge.runtime.images import ImageLike, load_image
from visionllm_edge.runtime.regions import Region, picture_mask

__all__ = ["draw_regions"]

# Discs and lines are as large as for a model that sees this many pixels per side.
_SIDE = 224
_TINT = 0.25
_INNER = (255, 255, 255)
_OUTER = (200, 0, 120)


def draw_regions(image: ImageLike, regions: Sequence[Region]) -> npt.NDArray[np.uint8]:
    """A copy of the picture, uint8 [H,W,3], with the regions on it.

    Raises:
        InputError: not a usable image, or a region that does not fit it.
    """
    pixels = load_image(image)
    for region in regions:
        mask = picture_mask(region, (pixels.shape[0], pixels.shape[1]), _SIDE)
        inner = mask & ~_shrunk(mask)
        outer = ~_shrunk(~mask) & ~mask
        tinted = pixels[mask] * (1 - _TINT) + np.array(_OUTER) * _TINT
        pixels[mask] = np.rint(tinted).astype(np.uint8)
        pixels[inner], pixels[outer] = _INNER, _OUTER
    return pixels


def _shrunk(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels whose four neighbours are all set; the picture's edge counts as set."""
    padded = np.pad(mask, 1, constant_values=True)
    shrunk: npt.NDArray[np.bool_] = (
        mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    )
    return shrunk
