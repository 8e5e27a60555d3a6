"""What is said for the tasks beyond detection: regions, pose, grounded captions, pictures.

Questions and scripted answers are tuples of segments, as in :mod:`visionllm_edge.runtime.prompts`.
Training and runtime say the same. The first wording of each list is what the runtime asks; the
others are training variants.

Source: VisionLLM v2 (arXiv 2406.08394), tables A14 to A24, for what the questions ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from visionllm_edge.runtime.prompts import (
    DETECTION_QUESTIONS,
    Control,
    Segment,
    Text,
    scripted_answer,
)

__all__ = [
    "CLASSIFY_QUESTIONS",
    "DESCRIBE_QUESTIONS",
    "EDIT_QUESTIONS",
    "GENERATION_QUESTIONS",
    "GROUNDED_CAPTION_QUESTIONS",
    "INTERACTIVE_QUESTIONS",
    "POSE_QUESTIONS",
    "Phrase",
    "classify_question",
    "describe_question",
    "edit_answer",
    "edit_question",
    "generation_answer",
    "generation_question",
    "grounded_caption_answer",
    "interactive_answer",
    "interactive_question",
    "pose_answer",
    "pose_question",
    "region_name",
    "region_segments",
]

DESCRIBE_QUESTIONS = (
    "What is in {region}?",
    "Can you describe {region}?",
)
CLASSIFY_QUESTIONS = (
    "Which of {classes} is in {region}?",
    "Is {region} one of {classes}?",
)
INTERACTIVE_QUESTIONS = (
    "Can you segment the objects in {regions}?",
    "Please mark what {regions} point at.",
)
POSE_QUESTIONS = (
    "Can you pinpoint the {keypoints} of the {objects}?",
    "Please find the {keypoints} of each {objects}.",
)
GROUNDED_CAPTION_QUESTIONS = (
    "Can you describe the image and localize each object?",
    "What is in this picture, and where?",
)
GENERATION_QUESTIONS = (
    "Generate image with caption: {caption}.",
    "Please draw {caption}.",
)
EDIT_QUESTIONS = (
    "{instruction}.",
    "Please edit the image: {instruction}.",
)
_POSE_OPENER = " Here are the keypoints "
_GENERATION_OPENER, _EDIT_OPENER = "Sure, here is the image ", "Sure, here is the edited image "


def region_name(index: int | None) -> str:
    """How a region is called: ``region1``, counted from 1, or ``region`` where only one exists."""
    return "region" if index is None else f"region{index}"


def region_segments(index: int | None) -> tuple[Segment, ...]:
    """A region inside a question: its name, and the place that its features take."""
    return (
        Control("<reg>"),
        Text(region_name(index)),
        Control("<region>"),
        Control("</reg>"),
    )


def describe_question(wording: str = DESCRIBE_QUESTIONS[0]) -> tuple[Segment, ...]:
    """Ask what one region shows; the answer is plain text."""
    return _with_regions(wording, "{region}", (None,))


def classify_question(
    classes: Sequence[str], wording: str = CLASSIFY_QUESTIONS[0]
) -> tuple[Segment, ...]:
    """Ask which class one region shows; the answer is one of the names, as plain text."""
    before, after = wording.split("{region}")
    listed = ", ".join(classes)
    return _with_regions(
        before.replace("{classes}", listed) + "{region}" + after.replace("{classes}", listed),
        "{region}",
        (None,),
    )


def interactive_question(
    count: int, wording: str = INTERACTIVE_QUESTIONS[0]
) -> tuple[Segment, ...]:
    """Ask for the objects that ``count`` regions point at."""
    return _with_regions(wording, "{regions}", tuple(range(1, count + 1)))


def interactive_answer(count: int) -> tuple[Segment, ...]:
    """The templated answer: every region's name with its routing token, ``region1[DET], ...``."""
    return scripted_answer([region_name(index) for index in range(1, count + 1)], "[DET]")


def pose_question(
    objects: Sequence[str],
    keypoints: Sequence[str],
    wording: str = POSE_QUESTIONS[0],
    detection: str = DETECTION_QUESTIONS[0],
) -> tuple[Segment, ...]:
    """Ask for objects, and in the same turn for the places of keypoints on them."""
    classes = ", ".join(objects)
    asked = wording.replace("{objects}", classes).replace("{keypoints}", ", ".join(keypoints))
    return (Text(f"{detection.replace('{classes}', classes)} {asked}"),)


def pose_answer(objects: Sequence[str], keypoints: Sequence[str]) -> tuple[Segment, ...]:
    """The templated answer: objects with ``[DET]``, then keypoint names with ``[POSE]``."""
    segments: list[Segment] = list(scripted_answer(objects, "[DET]"))
    for index, name in enumerate(keypoints):
        segments += [Text((", " if index else _POSE_OPENER) + name), Control("[POSE]")]
    return (*segments, Text("."))


@dataclass(frozen=True)
class Phrase:
    """Words of a caption that stand for objects in the picture."""

    text: str


def grounded_caption_answer(pieces: Sequence[str | Phrase]) -> tuple[Segment, ...]:
    """A caption in which each phrase is followed by a group of its own.

    Args:
        pieces: words as they stand in the caption, spaces included, and the phrases among them.
    """
    segments: list[Segment] = []
    for piece in pieces:
        if isinstance(piece, Phrase):
            segments += [Control("<det>"), Text(piece.text), Control("</det>"), Control("[DET]")]
        else:
            segments.append(Text(piece))
    return tuple(segments)


def generation_question(
    caption: str, wording: str = GENERATION_QUESTIONS[0]
) -> tuple[Segment, ...]:
    """Ask for a picture of what the caption says."""
    return (Text(wording.replace("{caption}", caption)),)


def generation_answer() -> tuple[Segment, ...]:
    """The templated answer with ``[GEN]``."""
    return (Text(_GENERATION_OPENER), Control("[GEN]"), Text("."))


def edit_question(instruction: str, wording: str = EDIT_QUESTIONS[0]) -> tuple[Segment, ...]:
    """Ask for a change of the picture."""
    return (Text(wording.replace("{instruction}", instruction)),)


def edit_answer() -> tuple[Segment, ...]:
    """The templated answer with ``[EDIT]``."""
    return (Text(_EDIT_OPENER), Control("[EDIT]"), Text("."))


def _with_regions(wording: str, slot: str, indices: Sequence[int | None]) -> tuple[Segment, ...]:
    """A wording with regions in the place of a slot, commas between them."""
    before, after = wording.split(slot)
    segments: list[Segment] = [Text(before)]
    for place, index in enumerate(indices):
        segments += [Text(", ")] * bool(place) + list(region_segments(index))
    return (*segments, Text(after))
