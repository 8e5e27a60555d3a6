"""Formats that an answer cannot leave: one of several texts, or a list of items.

A format is written in ids. A :class:`Walk` says which ids may come next and follows the ones that
are taken; the last one is always the end token, so a finished answer is one that the format
describes, whatever the model would rather have written. Knows nothing of logits or texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from visionllm_edge.runtime.errors import InputError

__all__ = ["AnswerFormat", "Choices", "Listing", "Walk"]

Ids = tuple[int, ...]
# What a piece of an answer leads to: a bit set of the items used so far, or None at the end.
State = int | None


class AnswerFormat(Protocol):
    """The pieces of an answer, and which may follow which."""

    def pieces(self, used: int) -> list[tuple[Ids, State]]:
        """What may stand next, never empty ids; ``used`` is 0 at the start."""
        ...

    @property
    def longest(self) -> Ids:
        """Ids of a longest answer, the end token included."""
        ...


class Walk:
    """One answer on its way through a format."""

    def __init__(self, form: AnswerFormat) -> None:
        """Start at the beginning."""
        self._form = form
        # What may be in progress: the ids of a piece, how many of them are taken, where it leads.
        self._open: list[tuple[Ids, int, State]] = [(ids, 0, then) for ids, then in form.pieces(0)]

    def allowed(self) -> list[int]:
        """The ids that may come next, ascending; empty when the answer has ended."""
        return sorted({ids[at] for ids, at, _ in self._open})

    def advance(self, token: int) -> None:
        """Take one of the allowed ids."""
        going: list[tuple[Ids, int, State]] = []
        for ids, at, then in self._open:
            if ids[at] != token:
                continue
            if at + 1 < len(ids):
                going.append((ids, at + 1, then))
            elif then is not None:
                going += [(more, 0, after) for more, after in self._form.pieces(then)]
        self._open = going


@dataclass(frozen=True)
class Choices:
    """One of several answers.

    Attributes:
        options: ids of each answer.
        end: the end token.
    """

    options: tuple[Ids, ...]
    end: int

    def __post_init__(self) -> None:
        """Refuse a choice between nothing."""
        if not self.options or not all(self.options):
            raise InputError("choices: expected at least one answer, and no empty one. Add some.")

    def pieces(self, used: int) -> list[tuple[Ids, State]]:
        """The answers, each with the end token behind it."""
        return [((*option, self.end), None) for option in self.options]

    @property
    def longest(self) -> Ids:
        """The longest answer."""
        return (*max(self.options, key=len), self.end)


@dataclass(frozen=True)
class Listing:
    """A list of one or more items, each at most once and in any order.

    The first item and the others are given apart, because what stands before an item can change
    its ids: ``opener + A``, then ``separator + B``.

    Attributes:
        first: for each item the ids of an answer that starts with it, opener included.
        later: for each item the ids that add it, separator included.
        closer: what stands behind the last item; may be empty.
        end: the end token.
    """

    first: tuple[Ids, ...]
    later: tuple[Ids, ...]
    closer: Ids
    end: int

    def __post_init__(self) -> None:
        """Refuse a list of nothing."""
        if not self.first or not all((*self.first, *self.later)):
            raise InputError("list: expected at least one item, and no empty one. Add some.")
        if len(self.first) != len(self.later):
            raise ValueError("a list has as many first as later items")

    def pieces(self, used: int) -> list[tuple[Ids, State]]:
        """An item that is not in the list yet, or the end."""
        if not used:
            return [(ids, 1 << i) for i, ids in enumerate(self.first)]
        items: list[tuple[Ids, State]] = [
            (ids, used | 1 << i) for i, ids in enumerate(self.later) if not used >> i & 1
        ]
        return [*items, ((*self.closer, self.end), None)]

    @property
    def longest(self) -> Ids:
        """All items."""
        extra = [len(ids) - len(self.later[i]) for i, ids in enumerate(self.first)]
        start = extra.index(max(extra))
        rest: Sequence[Ids] = [ids for i, ids in enumerate(self.later) if i != start]
        items = [*self.first[start], *(token for ids in rest for token in ids)]
        return (*items, *self.closer, self.end)
