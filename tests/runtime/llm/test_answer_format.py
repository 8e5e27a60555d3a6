"""Formats against a plain enumeration of the answers that they describe."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.llm.answer_format import AnswerFormat, Choices, Listing, Walk

END = 99


def walks(form: AnswerFormat, seed: int, count: int = 200) -> set[tuple[int, ...]]:
    """Answers of a model that takes any allowed id at random."""
    rng = np.random.default_rng(seed)
    found = set()
    for _ in range(count):
        walk, answer = Walk(form), []
        while allowed := walk.allowed():
            assert allowed == sorted(set(allowed))
            answer.append(int(rng.choice(allowed)))
            walk.advance(answer[-1])
        found.add(tuple(answer))
    return found


def test_choices_give_all_of_the_answers_and_nothing_else() -> None:
    # One answer begins as another, and one is the beginning of another.
    options = ((1, 2), (1, 2, 3), (1, 4), (5,))
    assert walks(Choices(options, END), 0) == {(*ids, END) for ids in options}


def test_lists_give_each_item_at_most_once_in_any_order() -> None:
    items = {"a": (1,), "ab": (1, 2), "c": (3,)}
    first = tuple((10, *ids) for ids in items.values())
    later = tuple((11, *ids) for ids in items.values())
    form = Listing(first, later, (12,), END)
    expected = set()
    for size in (1, 2, 3):
        for order in permutations(range(3), size):
            middle = [token for i in order[1:] for token in later[i]]
            expected.add((*first[order[0]], *middle, 12, END))

    assert walks(form, 0, 1500) == expected
    assert len(form.longest) == max(map(len, expected))


def test_the_longest_answer_is_as_long_as_any() -> None:
    assert Choices(((1, 2), (1, 2, 3)), END).longest == (1, 2, 3, END)
    uneven = Listing(((1,), (1, 1, 1, 1)), ((2, 2, 2), (2,)), (), END)
    assert len(uneven.longest) == 4 + 3 + 1
    assert max(map(len, walks(uneven, 0))) == 8


def test_settled_ids_are_the_only_ones_allowed() -> None:
    walk = Walk(Choices(((1, 2, 3), (1, 2, 4)), END))
    seen = []
    for token in (1, 2, 4, END):
        seen.append(walk.allowed())
        walk.advance(token)
    assert seen == [[1], [2], [3, 4], [END]]
    assert walk.allowed() == []


@pytest.mark.parametrize("options", [(), ((1,), ())])
def test_a_choice_between_nothing_is_refused(options: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(InputError, match="at least one"):
        Choices(options, END)
    with pytest.raises(InputError, match="at least one"):
        Listing(options, options, (), END)
