"""An answer as plain words, and which of them stand for a group.

An answer's ids hold tags and routing tokens between its words: ``<det> a fox </det>[DET] sleeps``.
A reader wants ``a fox sleeps``, and where in it the phrase stands. In a SentencePiece vocabulary
the blanks beside a control token are eaten, so they are put back: one blank between two words, none
in front of a punctuation mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from visionllm_edge.runtime.results import GroundedPhrase
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["plain_answer"]

_OPENING = ("<det>", "<grd>")
_CLOSING = ("</det>", "</grd>")
# Signs that a word follows without a blank.
_ADHERENT = "([{<'\"/-"


@dataclass
class _Words:
    """Plain words so far, and the tagged phrase that waits for its routing token."""

    text: str = ""
    opened: int | None = None
    tagged: tuple[int, int] | None = None

    def add(self, words: str, *, spaced: bool) -> None:
        if spaced and self.text and words[:1].isalnum():
            last = self.text[-1]
            if not last.isspace() and last not in _ADHERENT:
                self.text += " "
        if self.opened is not None and self.opened == -1 and words.strip():
            # The phrase begins at its first letter, behind the blank that was just put.
            self.opened = len(self.text) + len(words) - len(words.lstrip())
        self.text += words

    def close(self) -> None:
        if self.opened is not None and self.opened >= 0:
            end = len(self.text.rstrip())
            self.tagged = (self.opened, max(end, self.opened))
        self.opened = None


def plain_answer(
    tokenizer: Tokenizer, ids: Sequence[int], labels: Sequence[str], routing: frozenset[int]
) -> tuple[str, tuple[GroundedPhrase, ...]]:
    """The words of an answer without tags and routing tokens, and the phrase of each group.

    A group's phrase is what stands between the tags before its routing token, else its label where
    it stands last in the words before the token. A group whose label does not stand there (a
    referring expression, which the answer does not repeat) has no phrase.

    Args:
        tokenizer: of the model.
        ids: the answer's, without markers.
        labels: of the answer's groups, in order.
        routing: ids that open a group.

    Returns:
        The words, and the phrases in textual order; a phrase's ``group`` is the group's index in
        the answer.
    """
    words = _Words()
    phrases: list[GroundedPhrase] = []
    group = since = 0
    run: list[int] = []

    def flush() -> None:
        if run:
            words.add(tokenizer.decode(run), spaced=not tokenizer.byte_level)
            run.clear()

    for token in ids:
        name = tokenizer.control_name(token)
        if name is None:
            run.append(token)
            continue
        flush()
        if name in _OPENING:
            words.opened = -1
        elif name in _CLOSING:
            words.close()
        elif token in routing:
            words.close()  # a phrase whose end the model forgot
            place = words.tagged or _last(words.text, labels[group], since)
            if place is not None:
                text = words.text[slice(*place)]
                phrases.append(GroundedPhrase(text, *place, group))
            words.tagged = None
            group, since = group + 1, len(words.text)
    flush()
    # Blanks at the front would shift every offset.
    blanks = len(words.text) - len(words.text.lstrip())
    shifted = [GroundedPhrase(p.text, p.start - blanks, p.end - blanks, p.group) for p in phrases]
    return words.text.strip(), tuple(shifted)


def _last(text: str, label: str, since: int) -> tuple[int, int] | None:
    """Where the label stands last, behind the group before."""
    start = text.rfind(label, since) if label else -1
    return None if start < 0 else (start, start + len(label))
