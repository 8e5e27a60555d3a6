"""The streamed decoder computes what the torch module computes, in every arithmetic."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.export.llm.small_llama import (
    CONFIG,
    BlockWeights,
    decoder_case,
    dense_weights,
    dequantized_llama,
    random_llama,
)
from visionllm_edge.export.components.llm_decoder import Llama
from visionllm_edge.export.half_control import run_in_half
from visionllm_edge.export.llm.streamed import (
    CONTROL,
    HALF,
    ROUNDED,
    TRUTH,
    StreamedRun,
    run_streamed,
)
from visionllm_edge.plugins.quantized_linear.reference import round_activations
from visionllm_edge.runtime.backends.base import PRESENT_PREFIX
from visionllm_edge.runtime.ports import Array

CASES = [
    decoder_case(6, 3, 16, hidden=(2, 3, 4, 5), scored=(2, 3)),
    decoder_case(1, 9, 16, seed=1),
    decoder_case(20, 0, 24, hidden=(19, 0), scored=(1, 0), seed=2),
]


def run_module(module: nn.Module, run: StreamedRun, dtype: torch.dtype) -> dict[str, Array]:
    given = [torch.from_numpy(array) for array in run.inputs.values()]
    given = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in given]
    with torch.no_grad():
        outputs = module(*given)
    return named(run, outputs)


def named(run: StreamedRun, outputs: tuple[Tensor, ...]) -> dict[str, Array]:
    kinds = [f"{i}.{kind}" for i in range(CONFIG.num_hidden_layers) for kind in ("key", "value")]
    names = ["logits", "hidden", *(PRESENT_PREFIX + kind for kind in kinds)]
    out = {name: tensor.numpy() for name, tensor in zip(names, outputs, strict=True)}
    return {
        name: array[:, :, : run.valid] if name.startswith(PRESENT_PREFIX) else array
        for name, array in out.items()
    }


def assert_close(got: dict[str, Array], expected: dict[str, Array], tolerance: float) -> None:
    assert set(got) == set(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape, name
        np.testing.assert_allclose(
            wide(got[name]), wide(array), rtol=tolerance, atol=tolerance, err_msg=name
        )


def wide(array: Array) -> NDArray[np.float64]:
    return array.astype(np.float64)


def largest_difference(first: Array, second: Array) -> float:
    return float(np.abs(wide(first) - wide(second)).max())


def test_truth_and_control_are_those_of_the_module() -> None:
    llama = random_llama()
    runs = run_streamed(dense_weights(llama), CONFIG, CASES, [TRUTH, CONTROL])
    for run in runs:
        assert run.outputs["truth"]["logits"].dtype == np.float64
        assert_close(
            run.outputs["truth"],
            run_module(copy.deepcopy(llama).double(), run, torch.float64),
            1e-12,
        )
        assert_close(run.outputs["float32"], run_module(llama, run, torch.float32), 1e-5)


def test_the_prefix_is_the_cache_that_a_prefill_leaves() -> None:
    llama = random_llama()
    case = CASES[0]
    (run,) = run_streamed(dense_weights(llama), CONFIG, [case], [TRUTH])
    whole = decoder_case(9, 0, 16, hidden=tuple(range(5, 9)), scored=(2, 3))
    joined = np.concatenate([case.prefix, case.rows])
    whole = type(whole)(joined, whole.prefix, 16, whole.hidden_rows, whole.logit_rows)
    (expected,) = run_streamed(dense_weights(llama), CONFIG, [whole], [TRUTH])
    assert_close(run.outputs["truth"], expected.outputs["truth"], 1e-5)


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_what_they_stand_for(bits: int, asymmetric: bool) -> None:
    weights = BlockWeights(random_llama(), bits=bits, asymmetric=asymmetric)
    twin = dequantized_llama(weights).double()
    for run in run_streamed(weights, CONFIG, CASES, [TRUTH]):
        assert_close(run.outputs["truth"], run_module(twin, run, torch.float64), 1e-6)


def test_activations_are_rounded_as_the_operator_rounds_them() -> None:
    weights = BlockWeights(random_llama(), bits=8)
    twin = dequantized_llama(weights)
    for layer in twin.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(_round)
    differs = False
    for run in run_streamed(weights, CONFIG, CASES, [TRUTH, ROUNDED]):
        expected = run_module(twin, run, torch.float32)
        # A sum in another order may round one activation the other way.
        assert_close(run.outputs["int8 activations"], expected, 2e-3)
        logits = [run.outputs[kind]["logits"] for kind in ("int8 activations", "truth")]
        differs |= largest_difference(*logits) > 4e-3
    assert differs, "rounding must be larger than the tolerance of this test"


def _round(layer: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
    numbers, scales = round_activations(given[0].numpy(), 32)
    blocks = numbers.reshape(*scales.shape, 32) * scales[..., None]
    return torch.from_numpy(blocks.reshape(numbers.shape))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_makes_the_errors_of_half_precision(precision: str) -> None:
    llama = random_llama()
    kind = HALF[precision]
    run, other = run_streamed(dense_weights(llama), CONFIG, CASES[:2], [TRUTH], first_only=[kind])
    assert precision not in other.outputs
    given = {name: torch.from_numpy(array) for name, array in run.inputs.items()}
    expected = named(run, run_in_half(llama, given, precision))
    for name, true in run.outputs["truth"].items():
        ours = largest_difference(run.outputs[precision][name], true)
        theirs = largest_difference(expected[name], true)
        assert theirs / 3 < ours < theirs * 3, name


def test_a_half_cache_is_rounded_in_the_control_alone() -> None:
    llama = random_llama()
    exact = run_streamed(dense_weights(llama), CONFIG, CASES, [TRUTH, CONTROL])
    half = run_streamed(dense_weights(llama), CONFIG, CASES, [TRUTH, CONTROL], cache="float16")
    for one, other in zip(exact, half, strict=True):
        name = f"{PRESENT_PREFIX}0.key"
        assert other.inputs["past_key_values.0.key"].dtype == np.float16
        kept = other.outputs["float32"][name]
        assert np.array_equal(kept, kept.astype(np.float16).astype(np.float32))
        new = other.outputs["truth"][name]
        assert not np.array_equal(new, new.astype(np.float16))
        assert_close(other.outputs["truth"], one.outputs["truth"], 5e-3)


def test_one_matrix_is_in_memory_at_a_time() -> None:
    weights = BlockWeights(random_llama())
    run_streamed(weights, CONFIG, CASES, [TRUTH, CONTROL, ROUNDED])
    # The one before may live until the next has been read.
    assert 1 <= weights.most_alive <= 2


def test_a_wrong_weight_is_seen() -> None:
    llama = random_llama()
    (right,) = run_streamed(dense_weights(llama), CONFIG, CASES[:1], [TRUTH])
    broken: Llama = copy.deepcopy(llama)
    broken.state_dict()["model.layers.1.mlp.up_proj.weight"][3, 5] += 0.1
    (wrong,) = run_streamed(dense_weights(broken), CONFIG, CASES[:1], [TRUTH])
    logits = [run.outputs["truth"]["logits"] for run in (right, wrong)]
    assert largest_difference(*logits) > 1e-5
