"""A language model alone, quantised: its kits for TensorRT, checked in ONNX Runtime."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.export.llm.llama_folder import SMALL, write_llama_folder
from visionllm_edge.export.explain import Choices, explain_bundle
from visionllm_edge.export.kit import KitOptions, make_kit
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.engines.golden import compare, read_golden
from visionllm_edge.runtime.engines.kit_folder import Kit
from visionllm_edge.runtime.errors import ParityError
from visionllm_edge.runtime.targets import TARGETS

CONTEXT = SMALL.max_position_embeddings


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("kit")
    write_llama_folder(folder / "llama")
    return _compile(folder, "--llm-precision", "int4")


@pytest.fixture(scope="module")
def byte_cache(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Weights in fp32, keys and values in bytes."""
    folder = tmp_path_factory.mktemp("kit8")
    write_llama_folder(folder / "llama")
    return _compile(folder, "--llm-cache", "int8")


def _compile(folder: Path, *options: str) -> Bundle:
    arguments = ["compile", str(folder / "llama"), "-o", str(folder / "bundle"), "--no-cache"]
    done = CliRunner().invoke(main, [*arguments, *options])
    assert done.exit_code == 0, done.output
    return Bundle.open(folder / "bundle")


@pytest.mark.parametrize(
    ("target", "precision", "cache", "weights"),
    [
        ("rtx-ada", "fp16", "tensor_scatter", "dequantize_linear"),
        ("rtx-ada", "fp32", "tensor_scatter", "dequantize_linear"),
        ("rtx-turing", "fp16", "tensor_scatter", "dequantize_linear_int8"),
        ("jetson-orin-jp6", "fp16", "cached_attention", "dequantize_linear"),
        ("jetson-thor", "bf16", "cached_attention", "dequantize_linear"),
    ],
)
def test_the_numbers_hold_on_every_kind_of_target(
    bundle: Bundle, target: str, precision: str, cache: str, weights: str
) -> None:
    choices = dataclasses.replace(Choices(), precision=precision, check=True)
    (plan,) = explain_bundle(bundle, TARGETS[target], choices)
    assert {form.op: form.form for form in plan.forms} == {
        "CachedAttention": cache,
        "GatedSilu": "inline",
        "QuantizedLinear": weights,
    }
    assert "numbers in ONNX Runtime: right" in plan.checks[-1]
    kind = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
    heads, depth = SMALL.num_key_value_heads, SMALL.head_dim
    expected = f"{kind} [1, {heads}, {CONTEXT}, {depth}]"
    assert plan.inputs["past_key_values.0.key"] == expected
    assert plan.outputs["present.1.value"] == expected


@pytest.mark.parametrize(
    ("target", "precision"),
    [("rtx-ada", "fp16"), ("jetson-orin-jp6", "fp32"), ("jetson-thor", "bf16")],
)
def test_a_cache_of_bytes_stays_one_and_the_numbers_hold(
    byte_cache: Bundle, target: str, precision: str
) -> None:
    choices = dataclasses.replace(Choices(), precision=precision, check=True)
    (plan,) = explain_bundle(byte_cache, TARGETS[target], choices)
    assert {form.op: form.form for form in plan.forms} == {
        "GatedSilu": "inline",
        "QuantizedCachedAttention": "inline",
    }
    assert "numbers in ONNX Runtime: right" in plan.checks[-1]
    expected = f"int8 [1, {SMALL.num_key_value_heads}, {CONTEXT}, {SMALL.head_dim}]"
    assert plan.inputs["past_key_values.0.key"] == expected
    assert plan.outputs["present.1.value"] == expected


def test_its_kit_checks_engines_in_steps(byte_cache: Bundle, tmp_path: Path) -> None:
    make_kit(byte_cache.root, tmp_path / "kit", "rtx-ada", KitOptions(context=64))
    kit = Kit.open(tmp_path / "kit")
    (plan,) = kit.plan.stages
    assert plan.golden is not None
    inputs, outputs = read_golden(kit.file(plan.golden.file))
    assert inputs["past_key_values.0.key"].dtype == np.int8
    # A device compares whole numbers with fractions of a step, and needs no scales.
    name = "present.1.value"
    assert 64 < np.abs(outputs[name]).max() <= 127
    compare(plan.name, {**outputs, name: np.rint(outputs[name])}, outputs, plan.golden.limits)
    wrong = {**outputs, name: np.rint(np.asarray(outputs[name], np.float32) * 1.2)}
    with pytest.raises(ParityError, match=f"output '{name}' is wrong"):
        compare(plan.name, wrong, outputs, plan.golden.limits)


def test_a_kit_holds_the_packed_weights_and_both_profiles(bundle: Bundle, tmp_path: Path) -> None:
    make_kit(bundle.root, tmp_path / "kit", "rtx-ada", KitOptions(context=64))
    kit = Kit.open(tmp_path / "kit")
    (plan,) = kit.plan.stages
    assert [profile.use for profile in plan.profiles] == ["prefill", "decode"]
    for profile in plan.profiles:
        shapes = profile.shapes
        assert shapes["past_key_values.0.key"].min == (1, 2, 64, 16)
        assert shapes["hidden_rows"].min == shapes["logit_rows"].opt == (1,)
    assert plan.profiles[0].shapes["hidden_rows"].max == (64,)
    assert plan.profiles[1].shapes["inputs_embeds"].max == (1, 9, SMALL.hidden_size)
    # Packed: the numbers of all matrices, half a byte each, and little else.
    ours, theirs = (
        folder.stat().st_size
        for folder in (
            kit.file("graphs/llm_decoder.weights"),
            bundle.file("stages/llm_decoder.weights"),
        )
    )
    assert ours < 1.25 * theirs
