"""Between RGB pictures and the numbers that the VAE reads and writes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visionllm_edge.runtime.errors import BackendError

__all__ = ["pixels_from_rgb", "rgb_from_pixels", "size_near"]


def size_near(
    size: tuple[int, int], *, shorter: int, multiple: int, largest: tuple[int, int]
) -> tuple[int, int]:
    """Height and width of about the shape of ``size`` with a given shorter side.

    Where the longer side would be beyond ``largest``, whose sides are multiples too, both are
    smaller. Both are multiples of ``multiple`` and at least that. VisionLLM v2 (arXiv 2406.08394)
    trains its editor on pictures with a shorter side of 256 and takes any multiple of 8.
    """
    allowed = (most / side for most, side in zip(largest, size, strict=True))
    scale = min(shorter / min(size), *allowed)
    height, width = (max(multiple, round(side * scale / multiple) * multiple) for side in size)
    return height, width


def pixels_from_rgb(rgb: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """A picture ``[H, W, 3]`` resized to (height, width), float32 ``[1, 3, h, w]`` in -1..1.

    The Lanczos filter is what the public InstructPix2Pix pipeline resizes with.
    """
    if rgb.shape[:2] != size:
        resized = Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.LANCZOS)
        rgb = np.asarray(resized)
    scaled = rgb.astype(np.float32) * np.float32(2.0 / 255.0) - np.float32(1.0)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def rgb_from_pixels(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The VAE's output ``[1, 3, H, W]``, about -1..1, as a picture ``[H, W, 3]``.

    Raises:
        BackendError: numbers that are none, as float16 gives when a layer overflows.
    """
    if not np.isfinite(pixels).all():
        raise BackendError(
            "picture: expected finite numbers from the VAE, got NaN or infinity. Compile the "
            "bundle with the UNet and the VAE in float32, or try other steps and guidance."
        )
    grey = np.clip(pixels[0] * 0.5 + 0.5, 0.0, 1.0) * 255.0
    return np.ascontiguousarray(np.rint(grey).astype(np.uint8).transpose(1, 2, 0))
