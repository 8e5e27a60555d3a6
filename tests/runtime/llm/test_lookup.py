from __future__ import annotations

import numpy as np
import pytest

from visionllm_edge.runtime.llm.lookup import guess


def never(token: int) -> bool:
    return False


def test_what_followed_the_last_ids_before_is_the_guess() -> None:
    assert guess([1, 2, 3, 4, 5, 9, 1, 2], 3, stop=never) == [3, 4, 5]


def test_a_guess_ends_before_a_stop_and_at_its_limit() -> None:
    assert guess([1, 2, 3, 4, 5, 9, 1, 2], 3, stop=lambda token: token == 4) == [3]
    assert guess([1, 2, 3, 4, 5, 9, 1, 2], 1, stop=never) == [3]
    assert guess([1, 2, 3, 9, 1, 2], 3, stop=lambda token: token == 3) == []


def test_a_longer_match_goes_before_a_later_one() -> None:
    ids = [7, 1, 2, 30, 8, 1, 2, 40, 9, 7, 1, 2]
    assert guess(ids, 1, stop=never) == [30]
    assert guess([*ids[:9], 5, 1, 2], 1, stop=never) == [40]


def test_a_guess_may_run_into_what_it_repeats() -> None:
    assert guess([5, 5, 5, 5], 6, stop=never) == [5]
    assert guess([1, 2, 1, 2, 1, 2], 6, stop=never) == [1, 2]


@pytest.mark.parametrize("ids", [[], [1], [1, 2], [1, 2, 3], [1, 2, 3, 2]])
def test_nothing_is_guessed_from_one_common_id_or_less(ids: list[int]) -> None:
    assert guess(ids, 4, stop=never) == []


def test_against_a_plain_search() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        ids = rng.integers(0, 4, int(rng.integers(2, 40))).tolist()
        expected: list[int] = []
        for size in (4, 3, 2):
            ends = [e for e in range(size, len(ids)) if ids[e - size : e] == ids[-size:]]
            if size < len(ids) and ends:
                expected = ids[ends[-1] : ends[-1] + 5]
                break
        assert guess(ids, 5, stop=never) == expected
