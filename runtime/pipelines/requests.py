"""Checks what a user asks for before any work is done.

Class names, decided here:

1. At least one, at most the detector's ``max_text_len``; white space around a name is dropped.
2. No name is empty and none stands twice: a result could not say which of the two it means.
3. A comma is refused: it separates the classes inside the prompt, and in free mode the answer.
   Only the command line splits at commas.
4. Line breaks, other control characters and lone surrogates are refused.
5. Anything else is plain text, ``<image>`` and ``[DET]`` included.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from visionllm_edge.runtime.errors import InputError

__all__ = [
    "check_classes",
    "check_expression",
    "check_expressions",
    "check_line",
    "check_question",
]


def check_classes(classes: Sequence[str], *, limit: int) -> tuple[str, ...]:
    """Class names without surrounding white space.

    Raises:
        InputError: see the rules of this module.
    """
    if isinstance(classes, str):
        raise InputError(
            f"classes: expected a list of names, got the string {classes!r}. Pass ['a', 'b']."
        )
    if not classes:
        raise InputError("classes: expected at least one name, got none. Name what to look for.")
    if len(classes) > limit:
        raise InputError(
            f"classes: expected at most {limit} (the detector's limit), got {len(classes)}. "
            "Ask in several calls."
        )
    names = tuple(_line(name, "class") for name in classes)
    seen: set[str] = set()
    for name in names:
        if "," in name:
            raise InputError(
                f"class {name!r}: expected a name without a comma, which separates the classes in "
                "the prompt. Pass several classes or use other words."
            )
        if name in seen:
            raise InputError(f"class {name!r}: expected each class once, got it twice. Remove one.")
        seen.add(name)
    return names


def check_expression(expression: str) -> str:
    """A referring expression: one line of plain text, commas allowed.

    Raises:
        InputError: empty, or more than a line.
    """
    return _line(expression, "expression")


def check_expressions(expressions: str | Sequence[str]) -> tuple[str, ...]:
    """One referring expression or several, each at most once.

    Raises:
        InputError: none, an empty one, one twice, or one of more than a line.
    """
    given = (expressions,) if isinstance(expressions, str) else expressions
    checked = tuple(check_expression(expression) for expression in given)
    if not checked:
        raise InputError("expressions: expected at least one, got none. Say what to find.")
    for index, expression in enumerate(checked):
        if expression in checked[:index]:
            raise InputError(
                f"expression {expression!r}: expected each once, got it twice. Remove one."
            )
    return checked


def check_line(text: str, what: str) -> str:
    """One line of plain text without surrounding white space; ``what`` names it in messages.

    Raises:
        InputError: empty, or more than a line.
    """
    return _line(text, what)


def check_question(question: str) -> str:
    """A question or message: plain text, line breaks and tabs allowed.

    Raises:
        InputError: empty, or not valid Unicode text.
    """
    text = _text(question, "question").strip()
    if not text:
        raise InputError("question: expected some text, got none. Ask something.")
    return text


def _line(value: str, what: str) -> str:
    text = _text(value, what).strip()
    if not text:
        raise InputError(f"{what}: expected some text, got an empty name. Remove it.")
    # Zl and Zp are Unicode's own line and paragraph separators.
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in text):
        raise InputError(
            f"{what} {text!r}: expected one line without control characters. Remove them."
        )
    return text


def _text(value: str, what: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{what}: expected text, got {type(value).__name__}. Pass a string.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} {value!r}: expected valid Unicode, got a lone surrogate at {error.start}. "
            "Check the encoding of where it came from."
        ) from error
    return value
