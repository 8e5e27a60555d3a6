"""A cache of int8 through the driver: compiled, compared, shown, answered with, refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from tests.export.llm.llama_folder import SMALL, write_llama_folder
from visionllm_edge.export.cache import StageCache
from visionllm_edge.export.compile import CompileReport, compile_checkpoint
from visionllm_edge.export.llm import build_decoder as build_decoder_module
from visionllm_edge.export.llm.bundle_weights import BundleWeights
from visionllm_edge.export.lowering import LoweredNode, lower
from visionllm_edge.export.quantize import cache_scales as cache_scales_module
from visionllm_edge.export.quantize.policy import LlmPrecision
from visionllm_edge.export.verify import verify_bundle
from visionllm_edge.runtime.backends import StageOptions, load_backend
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.errors import ParityError
from visionllm_edge.runtime.llm.embeddings import EmbeddingTable
from visionllm_edge.runtime.llm.sequence import TokenSequence
from visionllm_edge.runtime.llm.session import DecoderSession
from visionllm_edge.runtime.memory import plan_memory
from visionllm_edge.runtime.targets import Target

DECODER = "llm_decoder"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama") / "llama"
    write_llama_folder(path)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> StageCache:
    return StageCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def reports(
    folder: Path, cache: StageCache, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], CompileReport]:
    made: dict[str, CompileReport] = {}

    def compiled(precision: str) -> CompileReport:
        if precision not in made:
            llm = LlmPrecision.from_options(precision, cache="int8")
            output = tmp_path_factory.mktemp("out") / precision
            made[precision] = compile_checkpoint(folder, output, cache=cache, llm=llm)
        return made[precision]

    return compiled


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4-awq"])
def test_it_goes_with_any_weights(
    reports: Callable[[str], CompileReport], folder: Path, precision: str
) -> None:
    report = reports(precision)
    assert report.end_to_end["compared_tokens"] == 16
    bundle = Bundle.open(report.bundle)
    llm, stage = bundle.manifest.model.llm, bundle.manifest.stages[DECODER]
    assert (llm.precision, llm.cache) == (precision, "int8")
    types = {port.dtype for port in stage.inputs if port.name.startswith("past_key_values")}
    assert types == {"int8"}
    row = 2 * SMALL.num_hidden_layers * SMALL.num_key_value_heads * SMALL.head_dim
    assert plan_memory(bundle, context=10, buckets=1).cache == 10 * row
    parity: dict[str, Any] = dict(stage.parity)
    assert "int8 cache" in parity["control"] and ("activations" in parity["control"]) == (
        precision != "fp32"
    )
    assert 0 <= parity["cache_cut_off"] < parity["cache_cut_off_limit"] == 0.1
    assert 0.9 < parity["cache_spread"] < parity["cache_spread_limit"]
    # Graph and kernel are right to float32's last digits; the rest is rounding.
    assert parity["exact_activations"]["worst"]["limit"] < 1e-3
    limits = parity["golden"]["limits"]
    assert limits["fp32"]["present.0.key"] < (0.63 if precision == "fp32" else 5)
    assert set(limits) == {"fp32", "fp16", "bf16"}
    assert verify_bundle(report.bundle).against == "golden files"
    verdict = verify_bundle(report.bundle, checkpoint=folder).stages[0]
    assert verdict.comparisons == len(parity["runs"]) * (2 + 2 * SMALL.num_hidden_layers) * 2
    lowering: dict[str, Any] = dict(stage.lowering)
    forms = {(node["op"], node["form"]) for node in lowering[stage.variants[0].model]}
    assert ("QuantizedCachedAttention", "cpu_kernel") in forms
    assert "CachedAttention" not in {op for op, _ in forms}


def test_what_graph_and_bundle_give_back_are_the_scales(
    reports: Callable[[str], CompileReport],
) -> None:
    scales = BundleWeights(Bundle.open(reports("fp32").bundle)).cache_scales()
    assert scales is not None and len(scales) == SMALL.num_hidden_layers
    for pair in scales:
        for array in pair:
            assert array.shape == (SMALL.num_key_value_heads, SMALL.head_dim)
            assert (array > 0).all()


def test_it_is_inspected_and_answered_with(reports: Callable[[str], CompileReport]) -> None:
    path = str(reports("int4-awq").bundle)
    shown = CliRunner().invoke(main, ["inspect", path])
    assert shown.exit_code == 0 and "cache int8" in shown.output
    asked = ["run", path, "--task", "text", "--prompt", "which?", "--max-new-tokens", "4"]
    answered = CliRunner().invoke(main, asked)
    assert answered.exit_code == 0, answered.output


def _greedy(session: DecoderSession, sequence: TokenSequence, count: int) -> list[int]:
    out = []
    for _ in range(count):
        out.append(int(session.run(sequence).logits_V.argmax()))
        sequence.append(out[-1:])
    return out


def test_a_prefix_is_found_again_and_a_rewound_cache_gives_the_same_bits(
    reports: Callable[[str], CompileReport],
) -> None:
    bundle = Bundle.open(reports("fp32").bundle)
    runner = load_backend("onnxruntime").load_stage(
        bundle.stage_model(DECODER),
        bundle.manifest.stages[DECODER].ports(DECODER),
        StageOptions(bundle=bundle, threads=1),
    )
    table = EmbeddingTable.from_bundle(bundle)

    def sequence() -> TokenSequence:
        made = TokenSequence(links={}, names={}, im_patch=-1)
        made.append(range(3, 33))
        return made

    session = DecoderSession(runner, table, capacity=64, caches=2)
    assert session.cache_bytes == plan_memory(bundle, context=64, buckets=1).cache
    first = _greedy(session, sequence(), 6)
    again = session.run(sequence(), logits_from=20)
    assert again.computed == 10
    bits = again.logits_lV.copy()
    session.rewind(20)
    redone = session.run(sequence(), logits_from=20)
    np.testing.assert_array_equal(redone.logits_lV, bits)
    other = TokenSequence(links={}, names={}, im_patch=-1)
    other.append(range(40, 60))
    session.run(other)
    assert session.run(sequence()).computed == 1  # the first conversation's cache is still there
    # In parts of eight rows: what is in the cache are whole numbers, so little can differ.
    parts = DecoderSession(runner, table, capacity=64, rows=8)
    np.testing.assert_allclose(
        parts.run(sequence()).logits_V, redone.logits_V, atol=0.05 * np.abs(redone.logits_V).max()
    )
    assert _greedy(session, sequence(), 6) == first


def _wrong(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """A lowering that spoils one initializer: what the gate runs, not what it compares with."""

    def lowered(model: ir.Model, target: Target) -> list[LoweredNode]:
        entries = lower(model, target)
        value = model.graph.initializers[name]
        assert value.const_value is not None
        array = np.ascontiguousarray(change(np.array(value.const_value.numpy())))
        value.const_value = ir.Tensor(array, name=name)
        return entries

    return lowered


ATTENTION = f"model.layers.{SMALL.num_hidden_layers - 1}.self_attn.attention"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (f"{ATTENTION}.key_scale", lambda scale: np.roll(scale, 1, axis=-1)),
        (f"{ATTENTION}.value_scale", lambda scale: np.roll(scale, 1, axis=-1)),
        (f"{ATTENTION}.key_scale", lambda scale: scale / 4),
        # Far below what rounding keys and values costs: the twin in float32 sees it.
        ("model.layers.0.mlp.down_proj.weight", lambda weight: weight * np.float32(1.001)),
    ],
    ids=["keys of the next channel", "values of the next channel", "a quarter", "a weight"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_graph_that_is_wrong_is_refused(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Callable[[np.ndarray], np.ndarray],
) -> None:
    monkeypatch.setattr(build_decoder_module, "lower", _wrong(name, change))
    with pytest.raises(ParityError, match=r"stage 'llm_decoder': output '.*' is wrong"):
        compile_checkpoint(
            folder, tmp_path / "bundle", llm=LlmPrecision.from_options("fp32", cache="int8")
        )
    assert not (tmp_path / "bundle").exists()


def test_scales_that_were_measured_wrong_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_scales_module, "LARGEST_CODE", 4 * 127)
    with pytest.raises(ParityError, match="cache of int8: expected the ranges"):
        compile_checkpoint(
            folder, tmp_path / "bundle", llm=LlmPrecision.from_options("fp32", cache="int8")
        )
    assert not (tmp_path / "bundle").exists()


def test_a_model_that_does_not_fit_is_compared_in_part(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_decoder_module, "available_bytes", lambda: 10_000)
    monkeypatch.setattr(build_decoder_module, "_SHALLOW_LAYERS", 1)
    report = compile_checkpoint(
        folder, tmp_path / "bundle", llm=LlmPrecision.from_options("int4", cache="int8")
    )
    parity = Bundle.open(report.bundle).manifest.stages[DECODER].parity
    assert "first 1 of" in str(parity["compared_layers_note"])
    assert verify_bundle(report.bundle).stages[0].comparisons == 2 + 2 * SMALL.num_hidden_layers
