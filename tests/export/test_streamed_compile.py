"""The driver with a model that it may not hold in memory: the same bundle, and it says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.export.small_checkpoint import write_small_checkpoint
from visionllm_edge.export import streamed_model
from visionllm_edge.export.compile import CompileReport, compile_checkpoint
from visionllm_edge.export.streamed_model import StreamedModel
from visionllm_edge.export.verify import verify_bundle
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.shapes_world import make_scene

pytestmark = pytest.mark.slow

SAID = "not run: the model is larger than the memory; every stage was compared by itself"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint")


@pytest.fixture(scope="module")
def report(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> CompileReport:
    loaded: list[tuple[str, ...]] = []
    release = StreamedModel.release

    def watched(parts: StreamedModel) -> None:
        loaded.append(parts.loaded)
        release(parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed_model, "WHOLE_WEIGHTS", 0)
        patch.setattr(StreamedModel, "release", watched)
        folder = tmp_path_factory.mktemp("out") / "bundle"
        report = compile_checkpoint(checkpoint, folder, jobs=4)
    # Never more than one decoder, or the vision tower with what stands behind it.
    most = ("emb_embeddings_det", "region_encoder", "vis_encoder", "vl_bridge")
    assert ("gdino",) in loaded
    assert all(len(parts) <= 1 or set(parts) <= set(most) for parts in loaded), loaded
    return report


def test_the_report_and_the_manifest_say_what_was_not_compared(report: CompileReport) -> None:
    assert report.end_to_end == {"summary": SAID}
    written = json.loads((report.bundle / "reports" / "parity.json").read_text())
    assert written["end_to_end"] == {"summary": SAID}
    stages = Bundle.open(report.bundle, verify=True).manifest.stages
    assert all(spec.parity["end_to_end"] == SAID for spec in stages.values())
    assert all(spec.parity["runs"] for spec in stages.values())


def test_the_bundle_answers(report: CompileReport) -> None:
    scene = make_scene(np.random.default_rng(0), width=96, height=96)
    found = VisionLLM.load(report.bundle).detect(scene.image, ["circle"], threshold=0.0)
    assert len(found.detections) > 0


def test_the_bundle_is_verified_part_by_part(
    report: CompileReport, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_model, "WHOLE_WEIGHTS", 0)
    verdict = verify_bundle(report.bundle, checkpoint=checkpoint)
    assert verdict.end_to_end == {"summary": SAID}
    assert {stage.stage for stage in verdict.stages} == set(report.built)
