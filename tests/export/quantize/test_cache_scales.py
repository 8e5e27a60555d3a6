"""Ranges of a cache of int8: what they hold, what they are made from, and going on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.export.llm.small_llama import BlockWeights, dequantized_llama, random_llama
from tests.export.quantize.small_llama import CONFIG, SmallLlama, sequences
from visionllm_edge.export.components.llm_decoder import Llama
from visionllm_edge.export.llm.decoder_weights import BlockLinear, DenseLinear, DenseWeights
from visionllm_edge.export.quantize.cache_scales import (
    LARGEST_CODE,
    MARGIN,
    Scales,
    measure_cache_scales,
    scales_of,
)
from visionllm_edge.export.quantize.calibration import Calibration

UNIT = MARGIN / LARGEST_CODE


class Counted(DenseWeights):
    """Notes which linears are asked for."""

    def __init__(self, source: SmallLlama) -> None:
        super().__init__(source)
        self.asked: list[str] = []

    def linear(self, names: tuple[str, ...]) -> DenseLinear:
        self.asked.append(names[0])
        return super().linear(names)


def _measure(
    weights: Counted, folder: Path, calibration: Calibration | None = None, source: str = "a"
) -> Scales:
    return measure_cache_scales(weights, CONFIG, calibration or sequences(), folder, source=source)


def _largest(llama: Llama, rows: np.ndarray) -> Scales:
    """By the module that the parity gate trusts: one run from an empty cache."""
    config = llama.config
    shape = (1, config.num_key_value_heads, len(rows), config.head_dim)
    past = [torch.zeros(shape) for _ in range(2 * config.num_hidden_layers)]
    with torch.no_grad():
        found = llama(
            torch.from_numpy(rows)[None], torch.tensor([0]), torch.tensor([0]), torch.tensor([0]),
            *past,
        )[2:]  # fmt: skip
    reach = [tensor[0].abs().amax(dim=1).numpy() for tensor in found]
    return list(zip(reach[::2], reach[1::2], strict=True))


def _module(weights: SmallLlama) -> Llama:
    llama = Llama(CONFIG).eval().requires_grad_(False)
    llama.load_state_dict(weights.tensors)
    return llama


def test_ranges_hold_the_rotated_keys_and_the_values(tmp_path: Path) -> None:
    weights, calibration = SmallLlama(), sequences()
    scales = _measure(Counted(weights), tmp_path, calibration)
    found = [_largest(_module(weights), rows) for rows in calibration.sequences]
    for layer, (keys, values) in enumerate(scales):
        reach = [np.max([one[layer][part] for one in found], axis=0) for part in (0, 1)]
        np.testing.assert_allclose(values, reach[1] * UNIT, rtol=1e-5)
        # The norm of a pair: never smaller than either half at any position, and not much larger.
        assert (keys > reach[0] * UNIT * 0.9999).all()
        halves = np.split(reach[0], 2, axis=-1)
        assert (keys < np.hypot(*[np.concatenate([h, h], -1) for h in halves]) * UNIT * 1.01).all()
        first, second = np.split(keys, 2, axis=-1)
        np.testing.assert_array_equal(first, second)


def test_openings_count_and_positions_do_not(tmp_path: Path) -> None:
    weights, calibration = SmallLlama(), sequences(count=1)
    plain = _measure(Counted(weights), tmp_path / "a", calibration)
    loud = dataclasses.replace(calibration, openings=tuple(3 * r for r in sequences().sequences))
    wide = _measure(Counted(weights), tmp_path / "b", loud)
    for one, two in zip(plain, wide, strict=True):
        assert all((b >= a).all() for a, b in zip(one, two, strict=True))
    assert (wide[0][1] > plain[0][1]).any()


def test_blocks_count_with_what_they_stand_for(tmp_path: Path) -> None:
    weights = BlockWeights(random_llama(CONFIG), bits=4, block_size=32)
    assert isinstance(weights.linear(("lm_head.weight",)), BlockLinear)
    made = sequences(count=2)
    scales = measure_cache_scales(weights, CONFIG, made, tmp_path, source="blocks")
    found = [_largest(dequantized_llama(weights), rows) for rows in made.sequences]
    for layer, (_, values) in enumerate(scales):
        reach = np.max([one[layer][1] for one in found], axis=0)
        np.testing.assert_allclose(values, reach * UNIT, rtol=1e-4)


def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    whole = _measure(Counted(SmallLlama()), tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(text: str) -> None:
        raise StoppedError

    cut = tmp_path / "cut"
    with pytest.raises(StoppedError):
        measure_cache_scales(
            Counted(SmallLlama()), CONFIG, sequences(), cut, source="a", progress=stop
        )
    again = Counted(SmallLlama())
    for one, other in zip(whole, _measure(again, cut), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.asked and all(name.startswith("model.layers.1.") for name in again.asked)
    done = Counted(SmallLlama())
    for one, other in zip(whole, _measure(done, cut), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not done.asked
    # The states behind the last layer are of no use to anyone.
    assert (cut / "cache_ranges.safetensors").stat().st_size < 10_000


@pytest.mark.parametrize("other", ["source", "sequences", "openings"])
def test_work_for_something_else_is_not_taken(tmp_path: Path, other: str) -> None:
    _measure(Counted(SmallLlama()), tmp_path)
    again, given = Counted(SmallLlama()), sequences(seed=9 if other == "sequences" else 1)
    if other == "openings":
        given = dataclasses.replace(given, openings=given.sequences[:1])
    _measure(again, tmp_path, given, source="b" if other == "source" else "a")
    assert any(name.startswith("model.layers.0.") for name in again.asked)


def test_a_channel_that_nothing_reaches_keeps_a_scale() -> None:
    largest = np.array([[2.54, 0.0], [0.0, 0.0]], np.float32)
    keys, values = scales_of(largest, largest, 1.0)
    np.testing.assert_array_equal(keys, values)
    assert keys[0, 0] == pytest.approx(0.02)
    assert keys[0, 1] == pytest.approx(0.02 / 256)
    assert (keys[1] > 0).all() and keys.dtype == np.float32
