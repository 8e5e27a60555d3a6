"""A cache of int8 beside torch: units, and ranges that are wrong for graph and control alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.export.llm.small_llama import CONFIG, decoder_case, dense_weights, random_llama
from visionllm_edge.export.llm.cache_steps import (
    CacheSpread,
    in_float,
    in_steps,
    largest_cut_off,
    ports_in_float,
)
from visionllm_edge.export.llm.decoder_graph import CacheScales, decoder_ports
from visionllm_edge.export.llm.decoder_weights import DenseWeights
from visionllm_edge.export.llm.streamed import (
    CONTROL,
    HALF,
    ROUNDED,
    TRUTH,
    Arithmetic,
    StreamedRun,
    run_streamed,
)
from visionllm_edge.export.parity import MOST_CUT_OFF
from visionllm_edge.runtime.errors import ParityError

Float = NDArray[np.float64]
Pair = tuple[NDArray[np.float32], NDArray[np.float32]]

CASES = [decoder_case(6, 5, 16), decoder_case(24, 0, 24, seed=1)]
SHAPE = CONFIG.num_key_value_heads, CONFIG.head_dim


def _loud() -> DenseWeights:
    """Weights whose keys and values differ a lot from channel to channel."""
    llama = random_llama()
    for layer in llama.layers():
        for linear in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            linear.weight[::4] *= 12
    return dense_weights(llama)


def _runs(scales: CacheScales) -> list[StreamedRun]:
    return run_streamed(
        _loud(),
        CONFIG,
        CASES,
        [TRUTH, CONTROL, ROUNDED],
        first_only=[HALF["fp16"]],
        cache="int8",
        cache_scales=scales,
    )


@pytest.fixture(scope="module")
def right() -> CacheScales:
    """From what torch's rows reach, with the halves of a pair alike."""
    whole = _runs([(np.ones(SHAPE, np.float32),) * 2] * CONFIG.num_hidden_layers)
    scales = []
    for layer in range(CONFIG.num_hidden_layers):
        pair = []
        for kind in ("key", "value"):
            name = f"present.{layer}.{kind}"
            reach = [np.abs(run.outputs["truth"][name][0]).max(1) for run in whole]
            largest = np.max(reach, axis=0)
            if kind == "key":
                largest = np.tile(np.hypot(*np.split(largest, 2, -1)), 2)
            pair.append((largest / 127).astype(np.float32))
        scales.append((pair[0], pair[1]))
    return scales


def _codes(run: StreamedRun, kind: Arithmetic, name: str, scales: CacheScales) -> Float:
    return np.asarray(in_steps(run.outputs[kind.name], scales)[name], np.float64)


def test_new_rows_are_whole_steps_where_the_graph_rounds(right: CacheScales) -> None:
    for run, case in zip(_runs(right), CASES, strict=True):
        start = len(case.prefix)
        held = np.asarray(run.inputs["past_key_values.1.value"])
        assert held.dtype == np.int8 and (start == 0 or held.max() > 20)
        for name in ("present.0.key", "present.1.value"):
            exact, plain, rounded = (
                _codes(run, kind, name, right) for kind in (TRUTH, CONTROL, ROUNDED)
            )
            # What stood in the cache is whole in all of them, and the same.
            np.testing.assert_allclose(rounded[:, :, :start], exact[:, :, :start], atol=1e-4)
            np.testing.assert_allclose(rounded, np.rint(rounded), atol=1e-4)
            assert np.abs(exact[:, :, start:] - np.rint(exact[:, :, start:])).max() > 0.45
            np.testing.assert_allclose(plain, exact, atol=1e-2)
        name = "present.0.key"
        off = np.abs(_codes(run, ROUNDED, name, right) - _codes(run, TRUTH, name, right))
        assert 0.4 < off.max() < 0.5001
    half = _codes(_runs(right)[0], HALF["fp16"], "present.0.value", right)
    np.testing.assert_allclose(half, np.rint(half), atol=0.1)  # scales in half precision


def test_the_twin_in_float32_finds_the_same_cache(right: CacheScales) -> None:
    (run, _) = _runs(right)
    wide = in_float(run.inputs, right)
    assert wide["past_key_values.0.key"].dtype == np.float32
    start = len(CASES[0].prefix)
    np.testing.assert_array_equal(
        wide["past_key_values.0.key"][:, :, :start],
        run.outputs["float32"]["present.0.key"][:, :, :start],
    )
    assert wide["inputs_embeds"] is run.inputs["inputs_embeds"]
    assert ports_in_float(decoder_ports(CONFIG, cache="int8")) == decoder_ports(CONFIG)


def test_right_ranges_hold_what_torch_sees(right: CacheScales) -> None:
    # The rows in front were rounded otherwise when the ranges were taken.
    assert largest_cut_off("x", _runs(right), right) < 0.01


@pytest.mark.parametrize("fault", ["a quarter", "the next channel", "each other's"])
def test_wrong_ranges_are_refused_though_the_control_shares_them(
    right: CacheScales, fault: str
) -> None:
    faults: dict[str, Callable[[Pair], Pair]] = {
        "a quarter": lambda pair: (pair[0] / np.float32(4), pair[1] / np.float32(4)),
        "the next channel": lambda pair: (np.roll(pair[0], 1, -1), np.roll(pair[1], 1, -1)),
        "each other's": lambda pair: (pair[1], pair[0]),
    }
    wrong = [faults[fault](pair) for pair in right]
    with pytest.raises(
        ParityError, match=r"cache of int8: expected the ranges .* of layer \d"
    ) as e:
        largest_cut_off("llm_decoder", _runs(wrong), wrong)
    assert f"allowed {MOST_CUT_OFF:.0%}" in str(e.value) and "--calibration-text" in str(e.value)


def _spread(error: float, off: float) -> float:
    """Of codes that are wrong by a noise of their own, and by a share of their size."""
    rng, spread = np.random.default_rng(0), CacheSpread()
    for start in (0, 4):
        true = rng.normal(0, 30, (1, 2, 40, 16))
        noise, other = rng.normal(0, error, (2, *true.shape))
        ours = {"present.1.value": true * (1 + off) + noise, "logits": true}
        # What stood in the cache before is the same for all and must not count.
        ours["present.1.value"][:, :, :start] = 1e6
        spread.add(start, ours, {"present.1.value": true, "logits": true + 1e6},
                   {"present.1.value": true + other, "logits": true})  # fmt: skip
    return spread.require("llm_decoder")


def test_the_mean_error_shows_scales_that_the_largest_hides() -> None:
    assert 0.9 < _spread(0.8, 0.0) < 1.1
    with pytest.raises(ParityError, match=r"'present.1.value' is wrong: .* 1\.4\d times that"):
        _spread(0.8, 0.03)


def test_a_cache_of_int8_needs_its_scales() -> None:
    with pytest.raises(AssertionError, match="comes with scales"):
        run_streamed(dense_weights(random_llama()), CONFIG, CASES, [TRUTH], cache="int8")
