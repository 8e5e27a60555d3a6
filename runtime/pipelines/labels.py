"""Which words of an answer a routing token stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from visionllm_edge.runtime.prompts import GROUNDING_QUESTIONS
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["asked_expression", "group_label"]

_OPENING = ("<det>", "<grd>")
_CLOSING = ("</det>", "</grd>")


def group_label(tokenizer: Tokenizer, before: Sequence[int], *, first: bool) -> str:
    """Label of a group, from the ids between the group before it and its routing token.

    Tried in this order:

    1. what stands between a phrase's tags, ``<det> phrase </det>[DET]``;
    2. in the first group, what follows the opener, ``... results for NAME[DET]``;
    3. what follows the last separator: ``", "``, an ``and`` at the start, or, in the first group
       of another opener, ``" for "``.

    Args:
        tokenizer: decodes the ids.
        before: ids since the previous group's routing token, or since the answer's start.
        first: whether no group stands before this one in the answer.
    """
    names = [tokenizer.control_name(token) for token in before]
    for start in range(len(before) - 1, -1, -1):
        if names[start] in _OPENING:
            rest = names[start + 1 :]
            end = next((i for i, name in enumerate(rest) if name in _CLOSING), len(rest))
            return tokenizer.decode(before[start + 1 : start + 1 + end]).strip()
    text = tokenizer.decode(
        [token for token, name in zip(before, names, strict=True) if name is None]
    )
    if first:
        opener = re.match(r".*\bresults for ", text, re.IGNORECASE | re.DOTALL)
        text = text[opener.end() :] if opener else _after(text, " for ")
    text = _after(text, ", ").strip(" \t\n,.;:")
    return re.sub(r"^and\s+", "", text)


def asked_expression(question: str) -> str:
    """What a grounding question asks for; the whole question if its wording is unknown."""
    for template in GROUNDING_QUESTIONS:
        before, after = template.split("{expression}")
        if question.startswith(before) and question.endswith(after):
            return question[len(before) : len(question) - len(after)]
    return question


def _after(text: str, separator: str) -> str:
    return text[text.rfind(separator) + len(separator) :] if separator in text else text
