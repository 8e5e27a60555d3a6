"""Pictures of results: masks, boxes, labels with scores, and a strip of words below.

Small images are enlarged to ``SHOW_SIDE`` pixels first, because no text is readable on 128 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.images import ImageLike, load_image

if TYPE_CHECKING:
    from visionllm_edge.runtime.results import Detection, Pose

__all__ = ["SHOW_SIDE", "draw_result"]

SHOW_SIDE = 640

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]
# After the qualitative colours of Okabe and Ito, which colour-blind readers can tell apart; all are
# bright enough for dark letters.
_PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 190, 140),
    (240, 228, 66),
    (60, 130, 240),
    (235, 94, 0),
    (225, 120, 180),
    (150, 220, 90),
    (170, 110, 240),
    (255, 90, 95),
)
_MASK_ALPHA = 0.35
_PAPER: Color = (250, 250, 250)
_INK: Color = (20, 20, 20)


def draw_result(
    image: ImageLike,
    detections: Sequence[Detection],
    lines: Sequence[str] = (),
    poses: Sequence[Pose] = (),
) -> Image.Image:
    """A new picture with the detections and poses on it and the lines below it.

    Args:
        image: the image that the result is about, at its original size.
        detections: drawn from the last to the first, so that the best one lies on top.
        lines: words for the strip below; wrapped to the picture's width.
        poses: drawn over the detections.

    Raises:
        InputError: the image cannot be read, or a mask has another size than the image.
    """
    pixels = load_image(image)
    height, width = pixels.shape[:2]
    for found in detections:
        if found.mask is not None and found.mask.shape != (height, width):
            raise InputError(
                f"draw: the mask of {found.label!r} is {found.mask.shape[0]} high and "
                f"{found.mask.shape[1]} wide, the image {height} and {width}. "
                "Draw on the image that the result was made from."
            )
    scale = max(1.0, SHOW_SIDE / max(height, width))
    size = (round(width * scale), round(height * scale))
    canvas = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    unit = max(1, round(max(size) / SHOW_SIDE))
    colors = _colors(detections)
    line_width = 2 * unit
    for found in reversed(detections):
        if found.mask is not None:
            canvas = _with_mask(canvas, found.mask, colors[found.label], line_width)
    drawing = ImageDraw.Draw(canvas)
    boxes = [_scaled_box(found.box_xyxy, scale, size) for found in detections]
    for found, box in zip(reversed(detections), reversed(boxes), strict=True):
        drawing.rectangle(_grown(box, line_width), outline=(0, 0, 0), width=3 * line_width)
        drawing.rectangle(box, outline=colors[found.label], width=line_width)
    font = _font(16 * unit)
    taken: list[Box] = []
    for found, box in zip(detections, boxes, strict=True):
        text = f"{found.label} {found.score:.2f}"
        _draw_label(drawing, text, box, colors[found.label], font, size, taken)
    if poses:
        from visionllm_edge.runtime.draw_pose import draw_skeletons

        canvas = draw_skeletons(canvas, poses, scale)
    return _with_strip(canvas, lines, _font(18 * unit), 10 * unit) if lines else canvas


def _colors(detections: Sequence[Detection]) -> dict[str, Color]:
    labels = sorted({(found.group, found.label) for found in detections})
    names = list(dict.fromkeys(label for _, label in labels))
    return {name: _PALETTE[i % len(_PALETTE)] for i, name in enumerate(names)}


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _scaled_box(box: Box, scale: float, size: tuple[int, int]) -> Box:
    """The box on the canvas, cut to it, and never turned inside out."""
    left, right = (min(max(v * scale, 0.0), size[0] - 1.0) for v in (box[0], box[2]))
    top, bottom = (min(max(v * scale, 0.0), size[1] - 1.0) for v in (box[1], box[3]))
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def _grown(box: Box, by: float) -> Box:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _with_mask(
    canvas: Image.Image, mask: npt.NDArray[np.bool_], color: Color, outline: int
) -> Image.Image:
    area = Image.fromarray(mask.astype(np.uint8) * 255)
    if area.size != canvas.size:
        area = area.resize(canvas.size, Image.Resampling.BILINEAR).point(_half)
    inside = np.asarray(area) > 0
    pixels = np.array(canvas, dtype=np.float32)
    pixels[inside] += (np.array(color, np.float32) - pixels[inside]) * _MASK_ALPHA
    pixels[inside & ~_eroded(inside, outline)] = color
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _half(value: int) -> int:
    return 255 if value > 127 else 0


def _eroded(mask: npt.NDArray[np.bool_], by: int) -> npt.NDArray[np.bool_]:
    """The mask without its outermost ``by`` pixels; the picture's border is no edge."""
    for _ in range(by):
        padded = np.pad(mask, 1, mode="edge")
        mask = (
            padded[1:-1, 1:-1]
            & padded[:-2, 1:-1]
            & padded[2:, 1:-1]
            & padded[1:-1, :-2]
            & padded[1:-1, 2:]
        )
    return mask


def _draw_label(
    drawing: ImageDraw.ImageDraw,
    text: str,
    box: Box,
    color: Color,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
    taken: list[Box],
) -> None:
    """Words on a plate in the box's colour, where no other plate lies if there is such a place."""
    left, top, right, bottom = drawing.textbbox((0, 0), text, font=font)
    pad = max(2, round((bottom - top) / 5))
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    places = [
        (box[0], box[1] - height),  # above
        (box[0], box[3]),  # below
        (box[0], box[1]),  # inside, at the top
        (box[2] - width, box[3] - height),  # inside, at the bottom
        (box[2], box[1]),  # to the right
    ]
    plates = [_plate(x, y, width, height, size) for x, y in places]
    plate = next((p for p in plates if not any(_overlap(p, t) for t in taken)), plates[0])
    taken.append(plate)
    drawing.rectangle(plate, fill=color)
    drawing.text((plate[0] + pad - left, plate[1] + pad - top), text, fill=_INK, font=font)


def _plate(x: float, y: float, width: float, height: float, size: tuple[int, int]) -> Box:
    """The plate at that place, moved onto the canvas where it would stand out."""
    x = max(0.0, min(x, size[0] - width))
    y = max(0.0, min(y, size[1] - height))
    return x, y, x + width, y + height


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _with_strip(
    canvas: Image.Image,
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    margin: int,
) -> Image.Image:
    drawing = ImageDraw.Draw(canvas)
    room = canvas.width - 2 * margin
    wrapped = [part for line in lines for part in _wrapped(drawing, line, font, room)]
    _, top, _, bottom = drawing.textbbox((0, 0), "Ayg|", font=font)
    step = round((bottom - top) * 1.35)
    out = Image.new("RGB", (canvas.width, canvas.height + step * len(wrapped) + 2 * margin), _PAPER)
    out.paste(canvas)
    drawing = ImageDraw.Draw(out)
    for i, line in enumerate(wrapped):
        drawing.text((margin, canvas.height + margin + i * step), line, fill=_INK, font=font)
    return out


def _wrapped(
    drawing: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    room: float,
) -> list[str]:
    """Lines that fit; a word that alone is too long is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if drawing.textlength(longer, font=font) <= room:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and drawing.textlength(lines[-1] + letter, font=font) > room:
                lines.append("")
            lines[-1] += letter
    return lines
