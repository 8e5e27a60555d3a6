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
    "CHATML",
    "DETECTION_QUESTIONS",
    "GROUNDING_QUESTIONS",
    "PLAIN",
    "SEGMENTATION_QUESTIONS",
    "SHORT_ANSWER",
    "TEMPLATES",
    "VICUNA",
    "Control",
    "ImageSlot",
    "Segment",
    "Text",
    "Turn",
    "conversation",
    "end_of_answer",
    "follow_up",
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

    ``question`` is plain text, or segments where it points at regions; ``answer`` a tuple of
    segments (routing tokens are controls).
    """

    question: str | tuple[Segment, ...]
    answer: tuple[Segment, ...] | None = None

    def asked(self) -> tuple[Segment, ...]:
        """The question as segments."""
        return (Text(self.question),) if isinstance(self.question, str) else self.question


VICUNA, CHATML, PLAIN = "vicuna_v1", "chatml", "plain"
TEMPLATES = (VICUNA, CHATML, PLAIN)
"""Conversation templates: VisionLLM's own; turns between ``<|im_start|>`` and ``<|im_end|>``; and
bare text, which the model goes on writing."""

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_IM_START, _IM_END, _EOS = Control("<|im_start|>"), Control("<|im_end|>"), Control("</s>")

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
    """System text that a template has of its own; empty where it has none.

    Raises:
        KeyError: unknown template.
    """
    return {VICUNA: _VICUNA_SYSTEM, CHATML: "", PLAIN: ""}[template]


def end_of_answer(template: str) -> Control:
    """The control token that ends an answer; ``</s>`` stands for the tokenizer's own end.

    Raises:
        KeyError: unknown template.
    """
    return {VICUNA: _EOS, CHATML: _IM_END, PLAIN: _EOS}[template]


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
    turns: Iterable[Turn], *, image: bool, template: str = VICUNA, system: str | None = None
) -> tuple[Segment, ...]:
    """Segments of a whole conversation, ready to be tokenised; BOS is not included.

    The image stands once, at the start of the first question. The last turn may be open
    (``answer=None``): the prompt then ends where the model goes on. Neighbouring texts are merged,
    so that pieces are tokenised exactly as they would be inside one string.

    Args:
        turns: questions and answers.
        image: whether there is one.
        template: one of :data:`TEMPLATES`.
        system: what the model is told first; None for the template's own. ``plain`` has no place
            for it.

    Raises:
        KeyError: unknown template.
    """
    told = system_prompt(template) if system is None else system
    write = {VICUNA: _vicuna, CHATML: _chatml, PLAIN: _plain}[template]
    slot: tuple[Segment, ...] = (ImageSlot(), Text("\n")) if image else ()
    first = True
    segments: list[Segment] = []
    for turn in turns:
        segments += write(turn, told if first else "", slot if first else ())
        first = False
    return _merged(segments)


def follow_up(question: str | tuple[Segment, ...], template: str) -> tuple[Segment, ...]:
    """What stands behind an answer that exists already as ids: its end token and the next turn.

    Raises:
        KeyError: unknown template.
    """
    first = conversation((Turn(""),), image=False, template=template)
    whole = conversation((Turn("", ()), Turn(question)), image=False, template=template)
    # The answer's end is a control, so it begins a segment of its own.
    return whole[len(first) :]


def _vicuna(turn: Turn, system: str, image: tuple[Segment, ...]) -> Iterable[Segment]:
    if system:
        yield Text(f"{system} ")
    yield Text("USER: ")
    yield from (*image, *turn.asked(), Text(" ASSISTANT:"))
    if turn.answer is not None:
        yield from (Text(" "), *turn.answer, _EOS)


def _chatml(turn: Turn, system: str, image: tuple[Segment, ...]) -> Iterable[Segment]:
    if system:
        yield from (_IM_START, Text(f"system\n{system}"), _IM_END, Text("\n"))
    yield from (_IM_START, Text("user\n"), *image, *turn.asked(), _IM_END, Text("\n"))
    yield from (_IM_START, Text("assistant\n"))
    if turn.answer is not None:
        yield from (*turn.answer, _IM_END, Text("\n"))


def _plain(turn: Turn, system: str, image: tuple[Segment, ...]) -> Iterable[Segment]:
    yield from (*image, *turn.asked())
    if turn.answer is not None:
        yield from (*turn.answer, _EOS)


def _merged(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    out: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Text) and out and isinstance(out[-1], Text):
            out[-1] = Text(out[-1].text + segment.text)
        elif not (isinstance(segment, Text) and not segment.text):
            out.append(segment)
    return tuple(out)
