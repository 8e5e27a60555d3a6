"""One answer of a conversation: words, and whatever its routing tokens led to."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.results.common import Json, drawn, size_dict, spoken
from visionllm_edge.runtime.results.detection import Detection
from visionllm_edge.runtime.results.grounding import GroundedPhrase
from visionllm_edge.runtime.results.image import ImageResult
from visionllm_edge.runtime.results.pose import Pose

__all__ = ["ChatResult", "Span"]


@dataclass(frozen=True)
class Span:
    """One routing group of an answer: which token, which words it names, and its place in order."""

    routing: str
    label: str
    index: int

    def to_dict(self) -> Json:
        """Plain JSON types."""
        return {"routing": self.routing, "label": self.label, "index": self.index}


@dataclass(frozen=True)
class ChatResult:
    """One answer of a conversation, with whatever its routing tokens found.

    Attributes:
        text: the answer's words, routing tokens included.
        spans: the routing groups in textual order.
        detections: by descending score over all groups.
        image_size: (height, width) of the original image.
        question: what was asked.
        finish_reason: ``stop`` or ``length``, as in :class:`TextResult`.
        poses: by descending score.
        images: pictures that the answer made, in textual order.
        words: the answer without tags and routing tokens.
        phrases: words that stand for a group, ``words[start:end]``; their ``group`` counts in the
            spans. A group that the answer does not name has none.
    """

    text: str
    spans: tuple[Span, ...] = ()
    detections: tuple[Detection, ...] = ()
    image_size: tuple[int, int] | None = None
    question: str | None = None
    finish_reason: str = "stop"
    poses: tuple[Pose, ...] = ()
    images: tuple[ImageResult, ...] = ()
    words: str = ""
    phrases: tuple[GroundedPhrase, ...] = ()

    def to_dict(self, *, masks: bool = True) -> Json:
        """Plain JSON types; of a picture its words and its seed, not its pixels."""
        return {
            "text": self.text,
            "question": self.question,
            "finish_reason": self.finish_reason,
            "image_size": None if self.image_size is None else size_dict(self.image_size),
            "spans": [s.to_dict() for s in self.spans],
            "detections": [d.to_dict(masks=masks) for d in self.detections],
            "poses": [p.to_dict() for p in self.poses],
            "images": [i.to_dict() for i in self.images],
            "words": self.words,
            "phrases": [p.to_dict() for p in self.phrases],
        }

    def draw(self, image: ImageLike) -> Image.Image:
        """The image with what was found, and the words in a strip below it."""
        return drawn(image, self.detections, spoken(self.question, self.text), self.poses)
