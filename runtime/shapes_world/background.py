"""Backgrounds of the shapes world: blobs, a gradient and grain, in muted colours.

Muted means that red, green and blue of one spot stay close together (``MAX_CHROMA``), which no item
colour does; so an item can always be told from what is behind it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["MAX_CHROMA", "make_background"]

MAX_CHROMA = 60
_HALF_CHROMA = 26.0


def make_background(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """Make a background, ``[H, W, 3]`` float32, about 20 to 235; grain is not included."""
    level = rng.uniform(70.0, 190.0)
    tint = rng.uniform(-_HALF_CHROMA, _HALF_CHROMA, size=3) * rng.uniform(0.1, 0.7)
    cells = rng.integers(3, 9, size=2)
    light = rng.normal(0.0, rng.uniform(6.0, 26.0), size=(cells[0], cells[1], 1))
    colour = rng.uniform(-0.3, 0.3, size=(cells[0], cells[1], 3)) * _HALF_CHROMA
    blobs = np.clip(level + tint + light + colour, 25.0, 230.0).astype(np.uint8)
    smooth = Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)
    background = np.asarray(smooth).astype(np.float32)
    slope = rng.uniform(-28.0, 28.0, size=2).astype(np.float32)
    across = slope[0] * np.linspace(-0.5, 0.5, width, dtype=np.float32)
    down = slope[1] * np.linspace(-0.5, 0.5, height, dtype=np.float32)
    background += (across[None, :] + down[:, None])[:, :, None]
    return background
