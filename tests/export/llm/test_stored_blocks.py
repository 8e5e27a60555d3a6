"""A model that comes in blocks keeps them: from the file through the plan to the linears."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from tests.export.llm.llama_folder import random_state, write_gguf
from visionllm_edge.export.llm.decoder_plan import DecoderPlan, plan_for_llm, rounds_again
from visionllm_edge.export.llm.decoder_weights import BlockLinear, decoder_linears
from visionllm_edge.export.llm.weights import EMBEDDING, LlmWeights, open_llm
from visionllm_edge.export.quantize.policy import LlmPrecision
from visionllm_edge.export.quantize.quantize_llm import quantize_llm
from visionllm_edge.runtime.errors import ConfigError


def _written(path: Path, kind: Kind, plain: tuple[str, ...] = ()) -> LlmWeights:
    """A file whose matrices are in one block format, but for some."""
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in random_state().items()}
    kinds = {
        name: kind
        for name, array in arrays.items()
        if array.ndim == 2 and not name.endswith(plain) and name != EMBEDDING
    }
    arrays |= {name: gguf.quantize(arrays[name], kind) for name in kinds}
    write_gguf(path, arrays, kinds=kinds)
    return open_llm(path)


def _plan(weights: LlmWeights, word: str) -> DecoderPlan:
    unread = cast(Any, None)  # the tokenizer is for calibration
    return plan_for_llm(weights, unread, unread, LlmPrecision.from_options(word), None)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0])
def test_every_number_is_the_files_own(kind: Kind, tmp_path: Path) -> None:
    weights = _written(tmp_path / "small.gguf", kind)
    precision = _plan(weights, "stored").precision
    bits = 8 if kind == Kind.Q8_0 else 4
    assert (precision.option, precision.held, precision.block_size) == ("stored", f"int{bits}", 32)
    store = quantize_llm(weights, precision, tmp_path / "work")
    for names in decoder_linears(weights.config)[:-1]:
        linear = store.linear(names)
        assert isinstance(linear, BlockLinear)
        assert (linear.bits, linear.asymmetric) == (bits, kind == Kind.Q4_1)
        expected = np.concatenate([weights.tensor(name).numpy() for name in names])
        off = np.abs(linear.load().dequantize() - expected).max() / np.abs(expected).max()
        assert off <= (2.0**-11 if kind == Kind.Q4_1 else 0)


def test_a_linear_that_is_partly_plain_becomes_int8(tmp_path: Path) -> None:
    weights = _written(tmp_path / "small.gguf", Kind.Q4_1, plain=("v_proj.weight",))
    store = quantize_llm(weights, _plan(weights, "stored").precision, tmp_path / "work")
    kinds = [store.linear(names) for names in decoder_linears(weights.config)[:4]]
    assert all(isinstance(linear, BlockLinear) for linear in kinds)
    assert [cast(BlockLinear, linear).bits for linear in kinds] == [8, 4, 4, 4]


def test_minimums_are_kept_on_demand_only(tmp_path: Path) -> None:
    """They cost time per token: four bits that are asked for are symmetric ones."""
    weights = _written(tmp_path / "small.gguf", Kind.Q4_1)
    plan = _plan(weights, "int4")
    store = quantize_llm(weights, plan.precision, tmp_path / "work")
    for names in decoder_linears(weights.config)[:-1]:
        assert not cast(BlockLinear, store.linear(names)).asymmetric
    assert rounds_again(plan)
    assert not rounds_again(_plan(weights, "stored")) and not rounds_again(_plan(weights, "fp32"))
    symmetric = _written(tmp_path / "q4_0.gguf", Kind.Q4_0)
    assert not rounds_again(_plan(symmetric, "int4"))


def test_a_model_without_blocks_is_refused(tmp_path: Path) -> None:
    weights = _written(tmp_path / "small.gguf", Kind.Q6_K, plain=("weight",))
    with pytest.raises(ConfigError, match=r"stored: expected a language model .* got 'small'"):
        _plan(weights, "stored")
