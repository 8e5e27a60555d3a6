"""A language model alone through the driver: what is written, compared, resumed and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from visionllm_edge.benchmarks.random_llm import SHAPES, write_random_llm
from visionllm_edge.export.cache import StageCache
from visionllm_edge.export.compile import CompileReport, compile_checkpoint
from visionllm_edge.export.llm import build_decoder as build_decoder_module
from visionllm_edge.export.llm import decoder_parity as decoder_parity_module
from visionllm_edge.export.llm import end_to_end as end_to_end_module
from visionllm_edge.export.llm.bundle_weights import BundleWeights
from visionllm_edge.export.llm.decoder_weights import (
    FINAL_NORM,
    BlockLinear,
    decoder_linears,
    layer_norms,
)
from visionllm_edge.export.llm.weights import open_llm
from visionllm_edge.export.lowering import LoweredNode, lower
from visionllm_edge.export.progress import Progress
from visionllm_edge.export.quantize.policy import LlmPrecision
from visionllm_edge.export.verify import verify_bundle
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.errors import CheckpointError, ConfigError, ParityError
from visionllm_edge.runtime.targets import Target

SHAPE = SHAPES["tiny-test"]
INT4 = LlmPrecision.from_options("int4")


class Recorder(Progress):
    """Keeps what is said; may raise at a line."""

    def __init__(self, stop_at: str = "") -> None:
        super().__init__(silent=True)
        self.lines: list[str] = []
        self._stop_at = stop_at

    def step(self, text: str, *, seconds: float | None = None) -> None:
        self.note(text)

    def note(self, text: str) -> None:
        self.lines.append(text.strip())
        if self._stop_at and self._stop_at in text:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / "llm"
    write_random_llm(path, SHAPE)
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
            made[precision] = compile_checkpoint(
                folder,
                tmp_path_factory.mktemp("out") / precision,
                cache=cache,
                llm=LlmPrecision.from_options(precision),
            )
        return made[precision]

    return compiled


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4", "int4-awq"])
def test_every_precision_compiles_and_verifies(
    reports: Callable[[str], CompileReport], folder: Path, precision: str
) -> None:
    report = reports(precision)
    assert report.built == ("llm_decoder",)
    assert report.end_to_end["compared_tokens"] == 16
    bundle = Bundle.open(report.bundle)
    manifest = bundle.manifest
    assert manifest.family == "llama" and manifest.model.vision is None
    quantized = precision != "fp32"
    llm = manifest.model.llm
    assert (llm.precision, llm.block_size) == (precision, 32 if quantized else 0)
    half = "float16" if quantized else "float32"
    assert llm.cache == half
    table = bundle.array(manifest.model.embed_table)
    assert table.dtype == half and table.shape == (SHAPE.vocab_size, SHAPE.hidden_size)
    parity = manifest.stages["llm_decoder"].parity
    assert ("exact_activations" in parity) == quantized
    verdict = verify_bundle(report.bundle)
    assert verdict.against == "golden files"
    verdict = verify_bundle(report.bundle, checkpoint=folder)
    # 6 steps of 2 outputs and 2 layers' caches; quantised ones twice.
    assert verdict.stages[0].comparisons == 6 * (2 + 4) * (1 + quantized)
    assert verdict.end_to_end is not None


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_weights_are_read_back_from_the_bundle(
    reports: Callable[[str], CompileReport], folder: Path, precision: str
) -> None:
    source = open_llm(folder)
    stored = BundleWeights(Bundle.open(reports(precision).bundle))
    assert stored.quantized == (precision != "fp32")
    for name in (*layer_norms(1), FINAL_NORM):
        assert np.array_equal(stored.norm(name), source.tensor(name).float().numpy())
    for names in decoder_linears(source.config):
        original = np.concatenate([source.tensor(name).float().numpy() for name in names])
        linear = stored.linear(names)
        assert (linear.rows, linear.columns) == original.shape
        if isinstance(linear, BlockLinear):
            noise = np.abs(linear.load().dequantize() - original).max() / np.abs(original).max()
            assert 0.01 < noise < 0.2
        else:
            assert np.array_equal(linear.load().T, original)


def test_smaller_precisions_make_smaller_weights(reports: Callable[[str], CompileReport]) -> None:
    sizes = [
        (reports(kind).bundle / "stages" / "llm_decoder.weights").stat().st_size
        for kind in ("fp32", "int8", "int4")
    ]
    # The head of so small a model stays in float32.
    assert sizes[0] > 1.5 * sizes[1] and sizes[1] > 1.1 * sizes[2]


def test_golden_limits_are_there_for_every_precision(
    reports: Callable[[str], CompileReport],
) -> None:
    parity = Bundle.open(reports("int4").bundle).manifest.stages["llm_decoder"].parity
    golden = parity["golden"]
    assert isinstance(golden, dict)
    assert list(golden["limits"]) == ["fp32", "fp16", "bf16"]
    for limits in golden["limits"].values():
        assert set(limits) >= {"logits", "hidden", "present.1.value"}


def test_a_second_compile_reuses_the_stage(
    reports: Callable[[str], CompileReport], folder: Path, cache: StageCache, tmp_path: Path
) -> None:
    first = reports("int4")
    again = compile_checkpoint(folder, tmp_path / "again", cache=cache, llm=INT4)
    assert again.built == () and again.reused == ("llm_decoder",)
    assert Bundle.open(first.bundle).manifest.files == Bundle.open(again.bundle).manifest.files


def test_an_interrupted_compile_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        compile_checkpoint(
            folder, tmp_path / "bundle", cache=cache, llm=INT4, progress=Recorder("layer 1")
        )
    assert not (tmp_path / "bundle").exists()
    (left,) = (tmp_path / "cache").iterdir()
    assert left.name.startswith("work-") and any(left.iterdir())
    recorder = Recorder()
    report = compile_checkpoint(
        folder, tmp_path / "bundle", cache=cache, llm=INT4, progress=recorder
    )
    assert report.built == ("llm_decoder",)
    assert "quantise: layer 1 of 2 is there already" in recorder.lines
    (entry,) = (tmp_path / "cache").iterdir()
    assert not entry.name.startswith("work-")


def _slightly_wrong_lower(model: ir.Model, target: Target) -> list[LoweredNode]:
    """One scale of one block off by a part in 100: less than rounding activations costs."""
    entries = lower(model, target)
    value = model.graph.initializers["model.layers.0.mlp.down_proj.scales"]
    assert value.const_value is not None
    scales = np.array(value.const_value.numpy())
    scales[0, 0] *= np.float16(1.01)
    value.const_value = ir.Tensor(scales, name=value.name)
    return entries


def test_a_language_model_alone_has_no_object_queries(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"queries \(10\), got a language model alone"):
        compile_checkpoint(folder, tmp_path / "bundle", queries=10)


def test_rounded_activations_hide_no_wrong_weight(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_decoder_module, "lower", _slightly_wrong_lower)
    with pytest.raises(ParityError, match=r"stage 'llm_decoder': output '.*' is wrong"):
        compile_checkpoint(
            folder, tmp_path / "bundle", cache=StageCache(tmp_path / "cache"), llm=INT4
        )
    assert not (tmp_path / "bundle").exists()


def test_a_model_that_does_not_fit_is_compared_in_part(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (build_decoder_module, end_to_end_module):
        monkeypatch.setattr(module, "available_bytes", lambda: 100_000)
    monkeypatch.setattr(build_decoder_module, "_SHALLOW_LAYERS", 1)
    recorder = Recorder()
    report = compile_checkpoint(folder, tmp_path / "bundle", llm=INT4, progress=recorder)
    assert any("the first 1 of 2 layers and the head were compared" in x for x in recorder.lines)
    assert report.end_to_end["summary"].startswith("not run: needs 0.0 GB of memory")
    bundle = Bundle.open(report.bundle)
    parity = bundle.manifest.stages["llm_decoder"].parity
    assert "first 1 of 2 layers" in str(parity["compared_layers_note"])
    assert not any("shallow" in name for name in bundle.manifest.files)
    # The golden file is of the whole model all the same.
    assert verify_bundle(report.bundle).stages[0].comparisons == 2 + 4


def test_a_large_model_is_compared_on_fewer_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (build_decoder_module, decoder_parity_module, end_to_end_module):
        monkeypatch.setattr(module, "LARGE_WEIGHTS", 1)
    report = compile_checkpoint(folder, tmp_path / "bundle", llm=INT4)
    parity = Bundle.open(report.bundle).manifest.stages["llm_decoder"].parity
    assert parity["compared_rows"] == 28
    assert "a large model" in str(parity["compared_rows_note"])
    assert report.end_to_end["compared_tokens"] == 0 and report.end_to_end["answer"]


def test_another_checkpoint_is_refused(
    reports: Callable[[str], CompileReport], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    write_random_llm(other, SHAPE, seed=1)
    with pytest.raises(ParityError, match="compiled from another checkpoint"):
        verify_bundle(reports("int4").bundle, checkpoint=other)


def test_the_command_takes_the_options(
    reports: Callable[[str], CompileReport], folder: Path, cache: StageCache, tmp_path: Path
) -> None:
    reports("int4")
    arguments = ["compile", str(folder), "-o", str(tmp_path / "b"), "--cache", str(cache.folder)]
    result = CliRunner().invoke(main, [*arguments, "--llm-precision", "int4", "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["reused"] == ["llm_decoder"]
    assert content["end_to_end"]["answer"]
    assert Bundle.open(tmp_path / "b").manifest.name == folder.name


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--llm-block", "32"], 1, "expected a quantised precision"),
        (["--llm-precision", "int4", "--llm-block", "48"], 2, "'48' is not one of"),
        (["--llm-precision", "int2"], 2, "'int2' is not one of"),
        (["--llm-precision", "stored"], 1, "stored: expected a language model in blocks of its"),
        (["--llm-head", "int8"], 1, "--llm-head int8: expected a quantised precision"),
        (["--calibration-text", "nowhere.txt"], 2, "does not exist"),
    ],
)
def test_options_that_do_not_fit(
    folder: Path, tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    result = CliRunner().invoke(main, ["compile", str(folder), "-o", str(tmp_path / "b"), *options])
    assert result.exit_code == code
    assert message in result.stderr
    assert not (tmp_path / "b").exists()


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "notes.gguf"
    path.write_text("dear diary")
    with pytest.raises(CheckpointError, match=r"notes\.gguf"):
        compile_checkpoint(path, tmp_path / "bundle")
