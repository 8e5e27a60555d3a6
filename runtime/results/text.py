"""Answers in words."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.results.common import Json, drawn, spoken

__all__ = ["TextResult"]


@dataclass(frozen=True)
class TextResult:
    """Answer of caption and vqa.

    Attributes:
        text: the answer.
        question: what was asked, None for a caption.
        finish_reason: ``stop`` (the model ended its answer) or ``length`` (the token limit did).
    """

    text: str
    question: str | None = None
    finish_reason: str = "stop"

    def to_dict(self) -> Json:
        """Plain JSON types."""
        return {
            "text": self.text,
            "question": self.question,
            "finish_reason": self.finish_reason,
        }

    def draw(self, image: ImageLike) -> Image.Image:
        """The image with the words in a strip below it."""
        return drawn(image, (), spoken(self.question, self.text))
