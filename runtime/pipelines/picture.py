"""One picture and what was computed from it, kept so that a second question does not pay again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.images import ImageLike, load_image
from visionllm_edge.runtime.llm.sequence import ImageRows
from visionllm_edge.runtime.ports import Tensor
from visionllm_edge.runtime.preprocess import DetectorInput

__all__ = ["DetectorFeatures", "Picture", "PictureCache", "VisionStates"]


@dataclass(frozen=True)
class DetectorFeatures:
    """What a decoder of objects keeps of a picture: its prepared input and the backbone's maps.

    The maps are this object's own, on the host or wherever the backend made them.
    """

    prepared: DetectorInput
    maps: tuple[Tensor, ...]


@dataclass(frozen=True)
class VisionStates:
    """What the region encoder reads of a picture: host arrays of its own.

    Attributes:
        pixels: float32 ``[1, 3, I, I]``, the whole picture as the vision encoder saw it.
        level1: float32 ``[1, P, C]``, the state two layers before the end, without class token.
        states: float32 ``[1, P + 1, C]``, the state one layer before the end.
    """

    pixels: NDArray[np.float32]
    level1: NDArray[np.float32]
    states: NDArray[np.float32]


@dataclass
class Picture:
    """A loaded picture with its features, which are filled in when first needed.

    Attributes:
        key: equal for equal pixels.
        rgb: uint8 ``[H, W, 3]``.
        tiles: tiles for the vision encoder, until they are encoded.
        image_rows: the image tokens.
        vision_states: what the region encoder reads, where the bundle has one.
        region_rows: rows of regions by their number.
        features: what each backbone saw, by the stage's name.
    """

    key: str
    rgb: NDArray[np.uint8]
    tiles: NDArray[np.float32] | None = field(default=None, repr=False)
    image_rows: ImageRows | None = field(default=None, repr=False)
    vision_states: VisionStates | None = field(default=None, repr=False)
    region_rows: dict[int, NDArray[np.float32]] = field(default_factory=dict, repr=False)
    features: dict[str, DetectorFeatures] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.rgb.shape[0]), int(self.rgb.shape[1])


class PictureCache:
    """The most recent pictures by content.

    Args:
        capacity: how many to keep; a conversation keeps its own picture alive besides.
    """

    def __init__(self, capacity: int = 2) -> None:
        """Start empty."""
        self._capacity = capacity
        self._pictures: OrderedDict[str, Picture] = OrderedDict()

    def open(self, image: ImageLike) -> Picture:
        """Load a picture, or find it again.

        Raises:
            InputError: not a usable image.
        """
        rgb = load_image(image)
        digest = hashlib.blake2b(repr(rgb.shape).encode(), digest_size=16)
        digest.update(rgb.data.cast("B"))
        key = digest.hexdigest()
        picture = self._pictures.pop(key, None) or Picture(key, rgb)
        self._pictures[key] = picture
        while len(self._pictures) > self._capacity:
            self._pictures.popitem(last=False)
        return picture
