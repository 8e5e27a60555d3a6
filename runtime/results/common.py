"""What the results share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from visionllm_edge.runtime.images import ImageLike

if TYPE_CHECKING:
    from visionllm_edge.runtime.results.detection import Detection
    from visionllm_edge.runtime.results.pose import Pose

__all__ = ["Json", "drawn", "size_dict", "spoken"]

Json = dict[str, object]


def size_dict(size: tuple[int, int]) -> dict[str, int]:
    """(height, width) as plain JSON types."""
    return {"height": int(size[0]), "width": int(size[1])}


def spoken(question: str | None, text: str) -> tuple[str, ...]:
    """Lines for the strip below a picture."""
    return (text,) if question is None else (f"Q: {question}", f"A: {text}")


def drawn(
    image: ImageLike,
    detections: Sequence[Detection],
    lines: Sequence[str],
    poses: Sequence[Pose] = (),
) -> Image.Image:
    """The image with what was found on it and the lines below it."""
    from visionllm_edge.runtime.draw import draw_result  # draw needs the types of this package

    return draw_result(image, detections, lines, poses)
