"""Ranges from samples: the largest number is always seen, rare ones do not decide."""

from __future__ import annotations

import numpy as np
import pytest

from visionllm_edge.export.ranges import METHODS, Samples


def _samples(outlier: float) -> Samples:
    rng = np.random.default_rng(1)
    seen = Samples()
    for index in range(4):
        array = rng.standard_normal((50, 20, 96)).astype(np.float32)
        if index == 2:
            array[0, 0, 1] = -outlier
        seen.add(array)
    return seen


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_largest_magnitude_is_exact_and_others_are_inside(precision: str) -> None:
    seen = _samples(1000.0)
    assert seen.range("max", precision) == 1000.0
    assert 3 < seen.range("percentile", precision) < 6
    for method in METHODS:
        assert 0 < seen.range(method, precision) <= 1000.0


def test_mse_clips_a_normal_distribution_in_int8_only_a_little() -> None:
    seen = _samples(0.0)
    assert 0.7 * seen.largest <= seen.range("mse", "int8") <= seen.largest


def test_every_channel_is_sampled() -> None:
    seen = Samples()
    array = np.zeros((4096, 96), np.float32)
    array[:, 95] = 7.0
    seen.add(array)
    assert seen.range("percentile", "int8") == 7.0


def test_a_tensor_of_zeros_and_an_empty_one() -> None:
    seen = Samples()
    seen.add(np.zeros((2, 3), np.float32))
    seen.add(np.zeros((0, 3), np.float32))
    assert [seen.range(method, "int8") for method in METHODS] == [0.0, 0.0, 0.0]
