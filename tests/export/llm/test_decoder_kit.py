"""A language model alone, quantised: its kits for TensorRT, checked in ONNX Runtime."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.export.llm.llama_folder import SMALL, write_llama_folder
from visionllm_edge.export.explain import Choices, explain_bundle
from visionllm_edge.export.kit import KitOptions, make_kit
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.engines.kit_folder import Kit
from visionllm_edge.runtime.targets import TARGETS

CONTEXT = SMALL.max_position_embeddings


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("kit")
    write_llama_folder(folder / "llama")
    arguments = ["compile", str(folder / "llama"), "-o", str(folder / "bundle"), "--no-cache"]
    done = CliRunner().invoke(main, [*arguments, "--llm-precision", "int4"])
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
