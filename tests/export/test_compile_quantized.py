"""A VisionLLM whose language model is quantised: what is built, compared and reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.export.small_checkpoint import small_config, write_small_checkpoint
from visionllm_edge.export import end_to_end as end_to_end_module
from visionllm_edge.export.cache import StageCache
from visionllm_edge.export.compile import CompileReport, compile_checkpoint
from visionllm_edge.export.config import config_from_dict
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
