"""Answer formats out of texts: choices, and lists of things that each have a routing token.

What a text's ids are depends on what stands before it, so every piece is encoded behind a prompt
and the prompt's ids are taken off again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.llm.answer_format import AnswerFormat, Choices, Listing
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.prompts import (
    Segment,
    Text,
    Turn,
    conversation,
    end_of_answer,
    scripted_answer,
)
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["choices_format", "class_list_format", "with_room", "written_after"]


def choices_format(
    tokenizer: Tokenizer, choices: Sequence[str], *, template: str, prompt: str | None = None
) -> Choices:
    """A format of which one of the texts comes out, word for word.

    Args:
        tokenizer: of the model.
        choices: the texts, each at most once.
        template: conversation template, behind whose question the answer stands.
        prompt: bare text that the answer continues, in place of a conversation.

    Raises:
        InputError: no choices, an empty one, one twice, or one that cannot stand behind the prompt.
    """
    if isinstance(choices, str):
        raise InputError(
            f"choices: expected a list of texts, got the string {choices!r}. Pass ['yes', 'no']."
        )
    texts = [choice.strip() if prompt is None else choice for choice in choices]
    if not texts or not all(text.strip() for text in texts):
        raise InputError("choices: expected at least one text, and no empty one. Add some.")
    if len(set(texts)) < len(texts):
        raise InputError(f"choices: expected each text once, got {texts}. Remove one.")
    return Choices(
        tuple(written_after(tokenizer, (Text(text),), template, prompt) for text in texts),
        _end(tokenizer, template),
    )


def class_list_format(
    tokenizer: Tokenizer, classes: Sequence[str], routing: str, *, template: str
) -> Listing:
    """The templated answer that names classes, with any of them left out and in any order."""

    def ids(names: Sequence[str], *, closed: bool = False) -> tuple[int, ...]:
        answer = scripted_answer(names, routing)
        return written_after(tokenizer, answer if closed else answer[:-1], template, None)

    first = [ids([name]) for name in classes]
    later = [_behind(first[0], ids([classes[0], name])) for name in classes]
    return Listing(
        first=tuple(first),
        later=tuple(later),
        closer=_behind(first[0], ids(classes[:1], closed=True)),
        end=_end(tokenizer, template),
    )


def with_room(config: GenerationConfig, form: AnswerFormat | None) -> GenerationConfig:
    """Options that cannot cut an answer of this format off: the format bounds it already."""
    if form is None or config.max_new_tokens >= len(form.longest):
        return config
    return replace(config, max_new_tokens=len(form.longest))


def written_after(
    tokenizer: Tokenizer, answer: Sequence[Segment], template: str, prompt: str | None
) -> tuple[int, ...]:
    """Ids that an answer adds to a conversation of this template, or to a bare prompt.

    Raises:
        InputError: the answer's beginning and the prompt's end make one token together.
    """
    if prompt is not None:
        before = tokenizer.encode((Text(prompt),))
        whole = tokenizer.encode((Text(prompt), *answer))
    else:
        before = tokenizer.encode(conversation((Turn("?"),), image=False, template=template))
        closed = conversation((Turn("?", tuple(answer)),), image=False, template=template)
        whole = tokenizer.encode(closed)
        # What closes the turn is not part of the answer.
        end = tokenizer.control_id(end_of_answer(template).name)
        if end in whole[len(before) :]:
            del whole[whole.index(end, len(before)) :]
    return _behind(tuple(before), tuple(whole))


def _behind(before: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
    if whole[: len(before)] != before or len(whole) == len(before):
        raise InputError(
            "choices: an answer cannot be told from the end of the prompt, because both are "
            "written as one token. Begin the answer with another letter or a blank."
        )
    return whole[len(before) :]


def _end(tokenizer: Tokenizer, template: str) -> int:
    return tokenizer.control_id(end_of_answer(template).name)
