from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from visionllm_edge.runtime.errors import BackendError, InputError
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


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_only_allowed_ids_are_drawn_and_before_every_other_rule(temperature: float) -> None:
    logits = np.full(10, 50.0, np.float32)
    logits[[3, 7]] = [-40.0, -39.0]
    config = GenerationConfig(temperature=temperature, seed=0)
    sampler = Sampler(config, suppressed={3, 7}, size=5)

    drawn = {sampler.pick(logits, allowed=[3, 7], forbidden=[7]) for _ in range(200)}

    assert drawn == ({7} if temperature == 0.0 else {3, 7})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_may_be_forbidden_for_once(temperature: float) -> None:
    sampler = Sampler(GenerationConfig(temperature=temperature, seed=0), suppressed={1})
    for _ in range(30):
        assert sampler.pick(LOGITS, forbidden=[0, 2]) == 3
    assert Sampler(GenerationConfig()).pick(LOGITS) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("allowed", [None, [1, 2]])
def test_logits_that_are_no_numbers_are_refused(
    bad: float, temperature: float, allowed: list[int] | None
) -> None:
    logits = LOGITS.copy()
    logits[2] = bad
    sampler = Sampler(GenerationConfig(temperature=temperature))
    with pytest.raises(BackendError, match="expected finite logits"):
        sampler.pick(logits, allowed=allowed)


@pytest.mark.parametrize("options", [{"top_k": 7}, {"top_p": 0.6}, {"top_k": 20, "top_p": 0.8}, {}])
def test_draws_follow_the_definition(options: dict[str, float]) -> None:
    """Against sorting everything, as the definition says."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, 60).astype(np.float32)
    logits[[10, 11, 12]] = logits[5]  # equal ones at an edge
    config = GenerationConfig(temperature=0.8, seed=0, **options)  # type: ignore[arg-type]
    order = np.argsort(-logits, kind="stable")[: config.top_k or None]
    weights = np.exp(logits[order].astype(np.float64) / 0.8)
    weights /= weights.sum()
    kept = int(np.searchsorted(np.cumsum(weights), config.top_p)) + 1
    expected = dict(zip(order[:kept], weights[:kept] / weights[:kept].sum(), strict=True))

    sampler = Sampler(config)
    counts = Counter(sampler.pick(logits) for _ in range(6000))

    assert counts.keys() <= expected.keys()
    for token, share in expected.items():
        assert counts[int(token)] / 6000 == pytest.approx(share, abs=0.03)


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
        {"lookup_tokens": -1},
        {"lookup_tokens": 65},
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        GenerationConfig(**options)  # type: ignore[arg-type]
