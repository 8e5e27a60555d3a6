"""Pictures that were made."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.results.common import Json, size_dict

__all__ = ["ImageResult"]


@dataclass(frozen=True)
class ImageResult:
    """Answer of generate and edit.

    Attributes:
        image: uint8 RGB [H,W,3]; it takes no part in comparisons.
        text: what was asked for: the caption, or the instruction.
        seed: gives the same picture again, with the same steps and scheduler.
        steps: denoising steps that ran.
        scheduler: the sampler's name.
    """

    image: npt.NDArray[np.uint8] = field(compare=False, repr=False)
    text: str
    seed: int
    steps: int
    scheduler: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.image.shape[0]), int(self.image.shape[1])

    def to_dict(self) -> Json:
        """Plain JSON types, without the pixels."""
        return {
            "image_size": size_dict(self.size),
            "text": self.text,
            "seed": int(self.seed),
            "steps": int(self.steps),
            "scheduler": self.scheduler,
        }

    def draw(self, image: ImageLike | None = None) -> Image.Image:
        """The picture itself; what it was made from is not shown."""
        return Image.fromarray(self.image)
