"""Guesses how an answer goes on from what the context holds already.

A class list, a quotation or a template is often written twice. Where the last few ids stood before,
what followed them then is a guess at what follows now; the decoder checks all of it in one run. A
wrong guess costs the rows of that run and never changes an answer.

Source: the idea is known as prompt lookup decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["guess"]

# A longer match is the better guess; a single id in common says too little in running text.
_LONGEST, _SHORTEST = 4, 2


def guess(ids: Sequence[int], count: int, *, stop: Callable[[int], bool]) -> list[int]:
    """Up to ``count`` ids that may follow, empty if nothing in ``ids`` suggests any.

    Args:
        ids: prompt and answer so far.
        count: how many at most.
        stop: ids that no guess holds; a guess ends before the first of them.
    """
    total = len(ids)
    if total <= _SHORTEST:
        return []
    last, before = ids[total - 1], ids[total - 2]
    longest, start = 0, 0
    # From the end: of equally long matches the latest is the best model of what comes.
    for end in range(total - 1, 1, -1):
        if ids[end - 1] != last or ids[end - 2] != before:
            continue
        size = _SHORTEST
        while size < _LONGEST and size < end and ids[end - 1 - size] == ids[total - 1 - size]:
            size += 1
        if size > longest:
            longest, start = size, end
        if longest == _LONGEST:
            break
    found: list[int] = []
    for token in ids[start : start + count] if longest else ():
        if stop(token):
            break
        found.append(token)
    return found
