"""A checkpoint's chat template (Jinja) recognised as one of the runtime's own.

The runtime carries no template engine. So the template is run here, in a sandbox, on two
conversations, and a name is given only if one of ours writes the very same characters, the
checkpoint's system text included. Whatever else it says or does, it gets no name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from visionllm_edge.runtime.manifest import PromptSpec
from visionllm_edge.runtime.prompts import (
    CHATML,
    VICUNA,
    Control,
    Segment,
    Text,
    Turn,
    conversation,
    system_prompt,
)

__all__ = ["named_template"]

_CONVERSATIONS = (
    (Turn("Which bird is it?"),),
    (Turn("Which bird is it?", (Text("A wren."),)), Turn("Is it small?")),
)


def named_template(source: str, *, bos: str, eos: str) -> PromptSpec | None:
    """The runtime's template that writes what this Jinja template writes, or None.

    Args:
        source: the template's text.
        bos: text of the token put first; may be empty.
        eos: text of the token that ends an answer.
    """
    try:
        written = [_render(source, turns, bos, eos) for turns in _CONVERSATIONS]
    except Exception:  # a template may raise anything, and says so about what it does not take
        return None
    # BOS is the tokenizer's business; but for some models it is also the first token of a turn.
    for texts in ([text.removeprefix(bos) for text in written], written):
        for name, opening, closing in (
            (CHATML, "<|im_start|>system\n", "<|im_end|>"),
            (VICUNA, "", " USER:"),
        ):
            system = _between(texts[0], opening, closing)
            usual = system_prompt(name)
            if usual and not system:
                continue  # a template without its system text is another one
            spec = PromptSpec(name, None if system == usual else system)
            if texts == [_own(turns, spec, eos) for turns in _CONVERSATIONS]:
                return spec
    return None


def _render(source: str, turns: Sequence[Turn], bos: str, eos: str) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise ValueError(message)

    # The environment that transformers gives to chat templates, but for functions of the date.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    messages: list[dict[str, Any]] = []
    for turn in turns:
        messages.append({"role": "user", "content": turn.question})
        if turn.answer is not None:
            messages.append({"role": "assistant", "content": _text(turn.answer, eos)})
    return environment.from_string(source).render(
        messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos
    )


def _own(turns: Sequence[Turn], spec: PromptSpec, eos: str) -> str:
    segments = conversation(turns, image=False, template=spec.template, system=spec.system)
    return _text(segments, eos)


def _text(segments: Sequence[Segment], eos: str) -> str:
    out = ""
    for segment in segments:
        if isinstance(segment, Text):
            out += segment.text
        elif isinstance(segment, Control):
            out += eos if segment.name == "</s>" else segment.name
    return out


def _between(text: str, opening: str, closing: str) -> str:
    """What stands at the start of a text between two marks; empty if they are not there."""
    if not text.startswith(opening) or closing not in text:
        return ""
    return text[len(opening) : text.index(closing)]
