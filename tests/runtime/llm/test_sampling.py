from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.llm import GenerationConfig, Sampler

LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))


def draws(config: GenerationConfig, count: int = 4000) -> dict[int, float]:
    sampler = Sampler(config)
    counts = Counter(sampler.pick(LOGITS) for _ in range(count))
    return {token: n / count for token, n in counts.items()}


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert Sampler(GenerationConfig()).pick(np.array([1.0, 3.0, 3.0], np.float32)) == 1


def test_temperature_one_follows_the_probabilities() -> None:
    found = draws(GenerationConfig(temperature=1.0, seed=0))
    assert found == pytest.approx({0: 0.5, 1: 0.3, 2: 0.15, 3: 0.05}, abs=0.03)


def test_temperature_sharpens() -> None:
    found = draws(GenerationConfig(temperature=0.5, seed=0))
    weights = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    assert found[0] == pytest.approx(weights[0] / weights.sum(), abs=0.03)


def test_top_k_keeps_k() -> None:
    assert set(draws(GenerationConfig(temperature=1.0, top_k=2, seed=0))) == {0, 1}
    assert set(draws(GenerationConfig(temperature=5.0, top_k=1, seed=0))) == {0}


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, {0}), (0.45, {0}), (0.55, {0, 1}), (0.9, {0, 1, 2})]
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p: float, kept: set[int]) -> None:
    assert set(draws(GenerationConfig(temperature=1.0, top_p=top_p, seed=0))) == kept


def test_a_seed_repeats_and_another_differs() -> None:
    def run(seed: int) -> list[int]:
        sampler = Sampler(GenerationConfig(temperature=1.0, seed=seed))
        return [sampler.pick(LOGITS) for _ in range(50)]

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_suppressed_and_meaningless_ids_are_never_drawn() -> None:
    logits = np.zeros(10, np.float32)
    logits[[2, 9]] = 50.0
    sampler = Sampler(GenerationConfig(temperature=1.0, seed=0), suppressed={2, 50}, size=8)

    assert {sampler.pick(logits) for _ in range(200)} <= set(range(8)) - {2}
    assert Sampler(GenerationConfig(), suppressed={2}, size=8).pick(logits) == 0
    assert logits[2] == 50.0  # the caller's array is left alone


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"max_groups": 257},
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        GenerationConfig(**options)  # type: ignore[arg-type]
