"""The torch module of a quantised decoder holds its dequantised weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.export.llm.small_llama import (
    CONFIG,
    BlockWeights,
    decoder_case,
    dense_weights,
    dequantized_llama,
    random_llama,
)
from visionllm_edge.export.llm.cache_steps import in_float
from visionllm_edge.export.llm.decoder_graph import CacheScales
from visionllm_edge.export.llm.streamed import ROUNDED, TRUTH, run_streamed
from visionllm_edge.export.llm.torch_twin import torch_twin


def test_weights_are_those_that_the_blocks_stand_for() -> None:
    weights = BlockWeights(random_llama())
    expected = dequantized_llama(weights).state_dict()
    got = torch_twin(weights, CONFIG).state_dict()
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        if name == "model.embed_tokens.weight":
            assert not got[name].any()
        else:
            assert torch.equal(got[name], tensor), name


def test_float_weights_are_taken_as_they_are() -> None:
    llama = random_llama()
    got = torch_twin(dense_weights(llama), CONFIG, rounded_activations=True).state_dict()
    for name, tensor in llama.state_dict().items():
        assert name == "model.embed_tokens.weight" or torch.equal(got[name], tensor), name


@pytest.mark.parametrize("rounded", [False, True])
def test_it_computes_what_the_streamed_decoder_computes(rounded: bool) -> None:
    weights = BlockWeights(random_llama(), bits=8)
    case = decoder_case(6, 0, 16, hidden=(4, 5), scored=(1,))
    (run,) = run_streamed(weights, CONFIG, [case], [ROUNDED if rounded else TRUTH])
    (expected,) = run.outputs.values()
    twin = torch_twin(weights, CONFIG, rounded_activations=rounded)
    with torch.no_grad():
        logits = twin(*(torch.from_numpy(array) for array in run.inputs.values()))[0].numpy()
    difference = float(abs(logits.astype(float) - expected["logits"].astype(float)).max())
    assert difference < (2e-3 if rounded else 1e-5)


@pytest.mark.parametrize("prefix", [0, 9])
def test_keys_and_values_are_rounded_as_a_cache_of_int8_rounds_them(prefix: int) -> None:
    weights = dense_weights(random_llama())
    rng = np.random.default_rng(3)
    shape = (CONFIG.num_key_value_heads, CONFIG.head_dim)
    # Coarse steps, other ones in each channel: rounding shows, and so does a wrong channel.
    scales = [
        (
            rng.uniform(0.02, 0.2, shape).astype(np.float32),
            rng.uniform(0.02, 0.2, shape).astype(np.float32),
        )
        for _ in range(CONFIG.num_hidden_layers)
    ]
    case = decoder_case(6, prefix, 16, hidden=(4, 5), scored=(1,))
    (run,) = run_streamed(
        weights, CONFIG, [case], [TRUTH, ROUNDED], cache="int8", cache_scales=scales
    )
    inputs = [torch.from_numpy(array) for array in in_float(run.inputs, scales).values()]

    def error(twin_scales: CacheScales, expected: str) -> float:
        with torch.no_grad():
            logits = torch_twin(weights, CONFIG, cache_scales=twin_scales)(*inputs)[0].numpy()
        return float(abs(logits.astype(float) - run.outputs[expected]["logits"]).max())

    assert error(scales, ROUNDED.name) < 1e-4
    assert error(scales, TRUTH.name) > 1e-3
    swapped = [(values, keys) for keys, values in scales]
    assert error(swapped, ROUNDED.name) > 1e-3
