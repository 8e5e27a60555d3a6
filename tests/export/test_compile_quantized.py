"""A VisionLLM with quantised stages: what is built, compared and reported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.export.small_checkpoint import small_config, write_small_checkpoint
from visionllm_edge.export import end_to_end as end_to_end_module
from visionllm_edge.export.cache import StageCache
from visionllm_edge.export.compile import CompileReport, compile_checkpoint
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.export.passes import quantize_dense as quantize_dense_module
from visionllm_edge.export.quantize.matrix import BlockQuantized, quantize_blocks
from visionllm_edge.export.quantize.policy import LlmPrecision
from visionllm_edge.export.stages import stages_of
from visionllm_edge.export.verify import verify_bundle
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import ConfigError, ParityError
from visionllm_edge.runtime.model import VisionLLM

pytestmark = pytest.mark.slow

SMALL = config_from_dict(small_config(300), name="small")
NAMES = tuple(stage.name for stage in stages_of(SMALL))
OTHERS = tuple(name for name in NAMES if name != "llm_decoder")
INT4 = LlmPrecision.from_options("int4")
INT8_STAGES = {"vision_encoder": "int8", "det_masks": "int8"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> StageCache:
    return StageCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def fp32(
    checkpoint: Path, cache: StageCache, tmp_path_factory: pytest.TempPathFactory
) -> CompileReport:
    return compile_checkpoint(checkpoint, tmp_path_factory.mktemp("out") / "fp32", cache=cache)


@pytest.fixture(scope="module")
def int4(
    fp32: CompileReport,
    checkpoint: Path,
    cache: StageCache,
    tmp_path_factory: pytest.TempPathFactory,
) -> CompileReport:
    output = tmp_path_factory.mktemp("out") / "int4"
    return compile_checkpoint(checkpoint, output, cache=cache, llm=INT4)


@pytest.fixture(scope="module")
def int8(
    int4: CompileReport,
    checkpoint: Path,
    cache: StageCache,
    tmp_path_factory: pytest.TempPathFactory,
) -> CompileReport:
    """Two vision stages in int8, beside the language model in int4."""
    output = tmp_path_factory.mktemp("out") / "int8"
    return compile_checkpoint(
        checkpoint, output, cache=cache, llm=INT4, stage_precision=INT8_STAGES
    )


def test_only_the_decoder_depends_on_the_precision(int4: CompileReport) -> None:
    assert int4.built == ("llm_decoder",)
    assert int4.reused == OTHERS
    manifest = Bundle.open(int4.bundle).manifest
    llm = manifest.model.llm
    assert (llm.precision, llm.block_size, llm.cache) == ("int4", 32, "float16")
    assert "exact_activations" in manifest.stages["llm_decoder"].parity


def test_the_report_compares_with_both_models(int4: CompileReport) -> None:
    report = json.loads((int4.bundle / "reports" / "parity.json").read_text())["end_to_end"]
    assert report == json.loads(json.dumps(int4.end_to_end))
    assert report["against"] == "torch with the dequantised weights"
    assert set(report["control"]) == set(report["against_unquantized"]) < set(report)
    assert report["detections"] == report["control"]["detections"] == 8


def test_it_verifies_both_ways(int4: CompileReport, checkpoint: Path) -> None:
    assert [stage.stage for stage in verify_bundle(int4.bundle).stages] == list(NAMES)
    verdict = verify_bundle(int4.bundle, checkpoint=checkpoint)
    assert verdict.end_to_end is not None and "control" in verdict.end_to_end


def test_the_runtime_answers(int4: CompileReport) -> None:
    model = VisionLLM.load(int4.bundle, threads=1)
    image = np.zeros((40, 60, 3), np.uint8)
    assert len(model.segment(image, ["circle", "star"], threshold=0.0, top_k=5).detections) == 5


def test_a_chain_that_differs_by_more_than_its_control_is_not_published(
    int4: CompileReport,
    checkpoint: Path,
    cache: StageCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(end_to_end_module, "END_TO_END_SCORE", -1.0)
    with pytest.raises(ParityError, match=r"scores by .* \(allowed -1\)"):
        compile_checkpoint(checkpoint, tmp_path / "bundle", cache=cache, llm=INT4)
    assert list(tmp_path.iterdir()) == []


def test_a_calibration_text_that_nothing_reads_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a few words")
    with pytest.raises(ConfigError, match="--calibration-text: expected --llm-precision int4-awq"):
        compile_checkpoint(checkpoint, tmp_path / "bundle", llm=INT4, calibration_text=text)
    awq = LlmPrecision.from_options("int4-awq")
    with pytest.raises(ConfigError, match="a text of at least 256 tokens"):
        compile_checkpoint(checkpoint, tmp_path / "bundle", llm=awq, calibration_text=text)


def test_vision_stages_in_int8(int8: CompileReport, int4: CompileReport) -> None:
    assert set(int8.built) == set(INT8_STAGES)
    stages = Bundle.open(int8.bundle).manifest.stages
    precisions = {name: spec.parity["precision"] for name, spec in stages.items()}
    assert precisions == dict.fromkeys(NAMES, "fp32") | INT8_STAGES
    parity = stages["vision_encoder"].parity
    assert parity["rule"] == "error <= 4 x control + 0.001 x scale"
    worst, exact = (
        Bundle.open(report.bundle).manifest.stages["vision_encoder"].parity["worst"]
        for report in (int8, int4)
    )
    assert isinstance(worst, dict) and isinstance(exact, dict)
    assert worst["error"] > 100 * exact["error"]  # it does round
    ops = [entry["op"] for entry in _forms(stages["vision_encoder"].lowering)]
    assert set(ops) == {"QuantizedDense", "UnmaskedAttention"}
    assert ops.count("QuantizedDense") == 8  # a layer's six, and the bridge's two


def _forms(lowering: Mapping[str, object]) -> list[dict[str, str]]:
    (forms,) = lowering.values()
    assert isinstance(forms, list) and forms
    return forms


def test_a_cache_of_bytes_has_a_control_end_to_end(
    fp32: CompileReport, checkpoint: Path, cache: StageCache, tmp_path: Path
) -> None:
    llm = LlmPrecision.from_options("fp32", cache="int8")
    report = compile_checkpoint(checkpoint, tmp_path / "bundle", cache=cache, llm=llm)
    assert report.built == ("llm_decoder",) and report.reused == OTHERS
    # Weights are the checkpoint's own, and still something is rounded.
    assert "control" not in fp32.end_to_end
    assert report.end_to_end["against"] == "torch"
    assert set(report.end_to_end["control"]) < set(report.end_to_end)
    assert len(verify_bundle(report.bundle).stages) == len(NAMES)


def test_stages_in_int8_verify_both_ways(int8: CompileReport, checkpoint: Path) -> None:
    assert [stage.stage for stage in verify_bundle(int8.bundle).stages] == list(NAMES)
    verdict = verify_bundle(int8.bundle, checkpoint=checkpoint)
    assert verdict.end_to_end is not None and "control" in verdict.end_to_end


def test_a_stage_whose_weights_are_rounded_wrong_is_not_published(
    int4: CompileReport,
    checkpoint: Path,
    cache: StageCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of_the_next_output(weight: NDArray[np.float32], bits: int, block: int) -> BlockQuantized:
        return quantize_blocks(np.roll(weight, 1, axis=0), bits, block)

    monkeypatch.setattr(quantize_dense_module, "quantize_blocks", of_the_next_output)
    with pytest.raises(ParityError, match="stage 'det_backbone"):
        compile_checkpoint(
            checkpoint,
            tmp_path / "bundle",
            cache=cache,
            llm=INT4,
            stage_precision={"det_backbone": "int8"},
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"llm_decoder": "int8"}, "expected its precision by --llm-precision"),
        ({"det_masks": "fp8"}, "precision 'fp8' expected one of fp32, int8"),
        ({"masks": "int8"}, "no stage 'masks'; the bundle has vision_encoder, "),
        ({"region_encoder": "int8"}, "'region_encoder': precision expected one of fp32, got int8"),
    ],
)
def test_precisions_that_cannot_be(
    asked: dict[str, str], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        compile_checkpoint(checkpoint, tmp_path / "bundle", stage_precision=asked)
