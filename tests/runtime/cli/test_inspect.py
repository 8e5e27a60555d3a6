"""``visionllm-edge inspect`` on a hand-made bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from visionllm_edge.runtime.bundle import BundleWriter
from visionllm_edge.runtime.cli.inspect import inspect
from visionllm_edge.runtime.errors import BundleError

EXAMPLE = json.loads((Path(__file__).parents[1] / "manifest_example.json").read_text())


def _written(folder: Path, content: dict[str, Any]) -> Path:
    with BundleWriter(folder / "demo") as writer:
        for stage in content["stages"].values():
            for variant in stage["variants"]:
                writer.add_bytes(variant["model"], b"x" * 2048)
        for path in ("tables/embed_tokens.npy", "tables/superlink_det.npy"):
            writer.add_bytes(path, b"x")
        writer.add_bytes("tokenizer/tokenizer.json", b"{}")
        writer.add_bytes("stages/vision_encoder.weights", b"x" * 3072)
        return writer.commit(content)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return _written(tmp_path, EXAMPLE)


def test_summary(bundle: Path) -> None:
    done = CliRunner().invoke(inspect, [str(bundle)], catch_exceptions=False)
    assert done.exit_code == 0
    for line in (
        "bundle      hand-made (visionllm_v2)",
        "target      cpu: onnxruntime, fp32",
        "size        11.0 KiB in 8 files",
        "super-link  [DET] [SEG] [GRD] +4, [GEN] +64",
        "memory      40 MB (weights 0 MB, cache 0 MB, workspace 40 MB)",
        "stage det_backbone",
        "  in        pixels [1, 3, H, W] float32",
        "  in        past_key_values.0.key [1, 2, C, 4] float32  and 1 alike",
        "  graph     stages/det_backbone.64x96.onnx  2.0 KiB  bucket 64x96",
        "  weights   stages/vision_encoder.weights  3.0 KiB",
        "  lowering  stages/vision_encoder.onnx: 2 CachedAttention as function (no kernel here)",
        "  lowering  stages/det_backbone.64x64.onnx: standard operators only",
        "  lowering  not recorded",
        "  parity    rule: error <= 2 x control",
        "  parity    worst: image_tokens, error 1.00e-06, limit 1.00e-05",
        "  parity    runs: 2",
        "  parity    not recorded",
    ):
        assert line in done.output.splitlines()


def test_json_is_the_manifest(bundle: Path) -> None:
    done = CliRunner().invoke(inspect, [str(bundle), "--json"], catch_exceptions=False)
    assert json.loads(done.output) == json.loads((bundle / "manifest.json").read_text())


def test_a_broken_bundle_is_an_error(bundle: Path) -> None:
    (bundle / "tokenizer/tokenizer.json").unlink()
    done = CliRunner().invoke(inspect, [str(bundle)])
    assert isinstance(done.exception, BundleError)
    assert "'tokenizer/tokenizer.json' is missing" in str(done.exception)


def test_help_is_a_sentence() -> None:
    done = CliRunner().invoke(inspect, ["--help"])
    assert "Show what a bundle holds" in done.output and done.exit_code == 0


def test_reports_of_another_form_are_shown_as_they_are(tmp_path: Path) -> None:
    content = json.loads(json.dumps(EXAMPLE))
    content["stages"]["llm_decoder"]["lowering"] = {"graph": ["x"], "other": "function"}
    content["stages"]["llm_decoder"]["parity"] = {"worst": {"name": "logits", "error": "none"}}
    done = CliRunner().invoke(inspect, [str(_written(tmp_path, content))], catch_exceptions=False)
    assert '  lowering  graph: ["x"]' in done.output
    assert "  parity    worst: logits, error none" in done.output
