"""Words that are linked to places: captions with phrases, and a class for every pixel."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.results.common import Json, drawn, size_dict, spoken
from visionllm_edge.runtime.results.detection import Detection

__all__ = ["GroundedCaptionResult", "GroundedPhrase", "SemanticResult"]


@dataclass(frozen=True)
class GroundedPhrase:
    """Words of a caption that stand for objects.

    Attributes:
        text: the words.
        start: where they begin in the caption, in characters.
        end: where they end, exclusive.
        group: the detections of this phrase carry this number.
    """

    text: str
    start: int
    end: int
    group: int

    def to_dict(self) -> Json:
        """Plain JSON types."""
        return {"text": self.text, "start": self.start, "end": self.end, "group": self.group}


@dataclass(frozen=True)
class GroundedCaptionResult:
    """Answer of a grounded caption.

    Attributes:
        image_size: (height, width) of the original image.
        text: the caption as plain words, without tags and routing tokens.
        phrases: in textual order; ``text[start:end]`` of each is its own text.
        detections: by descending score; their ``group`` counts in the phrases.
        finish_reason: ``stop`` or ``length``.
    """

    image_size: tuple[int, int]
    text: str
    phrases: tuple[GroundedPhrase, ...]
    detections: tuple[Detection, ...]
    finish_reason: str = "stop"

    def to_dict(self, *, masks: bool = True) -> Json:
        """Plain JSON types."""
        return {
            "image_size": size_dict(self.image_size),
            "text": self.text,
            "phrases": [p.to_dict() for p in self.phrases],
            "detections": [d.to_dict(masks=masks) for d in self.detections],
            "finish_reason": self.finish_reason,
        }

    def draw(self, image: ImageLike) -> Image.Image:
        """The image with what the phrases stand for, and the caption below it."""
        return drawn(image, self.detections, spoken(None, self.text))


@dataclass(frozen=True)
class SemanticResult:
    """Answer of semantic segmentation.

    Attributes:
        image_size: (height, width) of the original image.
        classes: what was asked for, in order.
        labels: int16 [H,W], index into the classes for every pixel; -1 is none of them. It takes
            no part in comparisons.
        text: the answer's words, routing tokens included.
    """

    image_size: tuple[int, int]
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int16] = field(compare=False, repr=False)
    text: str = ""

    def to_dict(self) -> Json:
        """Plain JSON types: pixels per class in place of the map."""
        counts = [int((self.labels == index).sum()) for index in range(len(self.classes))]
        return {
            "image_size": size_dict(self.image_size),
            "classes": list(self.classes),
            "text": self.text,
            "pixels": dict(zip(self.classes, counts, strict=True)),
        }

    def draw(self, image: ImageLike) -> Image.Image:
        """The image with every class's area in a colour of its own."""
        height, width = self.image_size
        areas = [
            Detection(name, 1.0, (0.0, 0.0, float(width), float(height)), self.labels == index)
            for index, name in enumerate(self.classes)
            if (self.labels == index).any()
        ]
        return drawn(image, [_tight(area) for area in areas], ())


def _tight(area: Detection) -> Detection:
    assert area.mask is not None
    rows, columns = np.flatnonzero(area.mask.any(1)), np.flatnonzero(area.mask.any(0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Detection(area.label, area.score, box, area.mask, area.group)
