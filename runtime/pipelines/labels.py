"""Which words of an answer a routing token stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from visionllm_edge.runtime.prompts import GROUNDING_QUESTIONS
from visionllm_edge.runtime.task_prompts import EDIT_QUESTIONS, GENERATION_QUESTIONS
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["asked_for", "group_label"]

_OPENING = ("<det>", "<grd>")
_CLOSING = ("</det>", "</grd>")
# Groups whose answer does not repeat what was asked, and the questions that ask for them.
_ASKED = {
    "[GRD]": ("{expression}", GROUNDING_QUESTIONS),
    "[GEN]": ("{caption}", GENERATION_QUESTIONS),
    "[EDIT]": ("{instruction}", EDIT_QUESTIONS),
}
_OPENERS = {"[POSE]": "keypoints"}


def group_label(
    tokenizer: Tokenizer, before: Sequence[int], *, first: bool, routing: str = "[DET]"
) -> str:
    """Label of a group, from the ids between the group before it and its routing token.

    Tried in this order:

    1. what stands between a phrase's tags, ``<det> phrase </det>[DET]``;
    2. in the first group of its kind, what follows the opener, ``... results for NAME[DET]`` or
       ``... the keypoints NAME[POSE]``;
    3. what follows the last separator: ``", "``, an ``and`` at the start, or, in the first group
       of another opener, ``" for "``.

    Args:
        tokenizer: decodes the ids.
        before: ids since the previous group's routing token, or since the answer's start.
        first: whether no group of this routing token stands before this one in the answer.
        routing: the group's routing token.
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
        opening = _OPENERS.get(routing, "results for")
        opener = re.match(rf".*\b{opening} ", text, re.IGNORECASE | re.DOTALL)
        text = text[opener.end() :] if opener else _after(text, " for ")
    text = _after(text, ", ").strip(" \t\n,.;:")
    return re.sub(r"^and\s+", "", text)


def asked_for(routing: str, question: str) -> str | None:
    """What a question asks for by a group that its answer does not name: ``[GRD]``, ``[GEN]``.

    Returns:
        The expression, caption or instruction in the question; the whole question if its wording
        is unknown; None for a routing token whose answers name what they stand for.
    """
    if routing not in _ASKED:
        return None
    slot, wordings = _ASKED[routing]
    for wording in wordings:
        before, after = wording.split(slot)
        # A wording that is nearly all slot, "{instruction}.", may lack its full stop.
        if before and question.startswith(before) and question.endswith(after):
            return question[len(before) : len(question) - len(after)]
    return question.removesuffix(".") if routing != "[GRD]" else question


def _after(text: str, separator: str) -> str:
    return text[text.rfind(separator) + len(separator) :] if separator in text else text
