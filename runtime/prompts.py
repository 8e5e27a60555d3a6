"""What is said to the model: conversation template, questions, scripted answers.

A prompt is a tuple of segments. Text is always plain text, whoever wrote it; control tokens and the
image enter only as :class:`Control` and :class:`ImageSlot`, so nothing a user types can become one.
This module knows no token ids and no tensors. Training and runtime build their prompts here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "CAPTION_QUESTIONS",
    "DETECTION_QUESTIONS",
    "GROUNDING_QUESTIONS",
    "SEGMENTATION_QUESTIONS",
    "SHORT_ANSWER",
    "Control",
    "ImageSlot",
    "Segment",
    "Text",
    "Turn",
    "conversation",
    "scripted_answer",
    "scripted_grounding",
    "system_prompt",
]


@dataclass(frozen=True)
class Text:
    """Plain text; control words inside it have no effect."""

    text: str


@dataclass(frozen=True)
class Control:
    """One control token by name, for example ``[DET]`` or ``</s>``."""

    name: str


@dataclass(frozen=True)
class ImageSlot:
    """The place of the image tokens (one ``<im_patch>`` per token)."""


Segment = Text | Control | ImageSlot


@dataclass(frozen=True)
class Turn:
    """One exchange. ``answer`` is None for the turn that the model is to answer.

    ``question`` is plain text; ``answer`` a tuple of segments (routing tokens are controls).
    """

    question: str
    answer: tuple[Segment, ...] | None = None


# Per template: system text, the two role names, what stands between turns.
_TEMPLATES = {
    "vicuna_v1": (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        "USER",
        "ASSISTANT",
    ),
}

# The first entry of each list is what the runtime asks; the others are training variants.
DETECTION_QUESTIONS = (
    "Can you analyze the image and identify the {classes} present?",
    "Please detect the {classes} in this picture.",
    "Where are the {classes}?",
)
SEGMENTATION_QUESTIONS = (
    "Can you segment the {classes} in the image?",
    "Please mark every pixel of the {classes}.",
)
GROUNDING_QUESTIONS = (
    "Where can we locate the {expression} in the image?",
    "Please find the {expression}.",
)
CAPTION_QUESTIONS = (
    "Can you describe the image in one sentence?",
    "What do you see in this picture?",
)
SHORT_ANSWER = "Answer with one word."
_OPENER = "Sure, here are results for "
_GROUNDING_OPENER = "Sure, "


def system_prompt(template: str) -> str:
    """System text of a template.

    Raises:
        KeyError: unknown template.
    """
    return _TEMPLATES[template][0]


def scripted_answer(classes: Sequence[str], routing: str = "[DET]") -> tuple[Segment, ...]:
    """The templated answer that names every class, each followed by its routing token.

    Source: VisionLLM v2 (arXiv 2406.08394), figure A13 gives the wording.
    """
    segments: list[Segment] = []
    for i, name in enumerate(classes):
        segments += [Text((", " if i else _OPENER) + name), Control(routing)]
    return (*segments, Text("."))


def scripted_grounding() -> tuple[Segment, ...]:
    """The templated answer to a referring expression (which it does not repeat)."""
    return (Text(_GROUNDING_OPENER), Control("[GRD]"), Text("."))


def conversation(
    turns: Iterable[Turn], *, image: bool, template: str = "vicuna_v1"
) -> tuple[Segment, ...]:
    """Segments of a whole conversation, ready to be tokenised; BOS is not included.

    The image stands once, at the start of the first question. The last turn may be open
    (``answer=None``): the prompt then ends where the model goes on. Neighbouring texts are merged,
    so that pieces are tokenised exactly as they would be inside one string.
    """
    system, user, assistant = _TEMPLATES[template]
    segments: list[Segment] = [Text(system + " ")]
    for i, turn in enumerate(turns):
        if i == 0 and image:
            segments += [Text(f"{user}: "), ImageSlot(), Text("\n")]
        else:
            segments.append(Text(f"{user}: "))
        segments.append(Text(f"{turn.question} {assistant}:"))
        if turn.answer is not None:
            segments += [Text(" "), *turn.answer, Control("</s>")]
    return _merged(segments)


def _merged(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    out: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Text) and out and isinstance(out[-1], Text):
            out[-1] = Text(out[-1].text + segment.text)
        elif not (isinstance(segment, Text) and not segment.text):
            out.append(segment)
    return tuple(out)
