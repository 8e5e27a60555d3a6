"""The manifest's schema: what is read back, what is refused and how it is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.manifest import Manifest, check_relative
from visionllm_edge.runtime.ports import Port

LLM_EXAMPLE = json.loads((Path(__file__).parent / "manifest_llm_example.json").read_text())
EXAMPLE = json.loads((Path(__file__).parent / "manifest_example.json").read_text())
FILES = (
    "stages/vision_encoder.onnx",
    "stages/llm_decoder.onnx",
    "stages/det_backbone.64x64.onnx",
    "stages/det_backbone.64x96.onnx",
    "tables/superlink_det.npy",
    "tables/embed_tokens.npy",
    "tokenizer/tokenizer.json",
)


@pytest.fixture
def content() -> dict[str, Any]:
    """A complete manifest as JSON; a test may change it."""
    files = {name: {"size": 1, "sha256": "0" * 64} for name in FILES}
    return {**copy.deepcopy(EXAMPLE), "files": files}


def test_what_is_read_is_what_is_written(content: dict[str, Any]) -> None:
    manifest = Manifest.from_dict(content)
    assert json.loads(json.dumps(manifest.to_dict())) == content


def test_fields_have_their_types(content: dict[str, Any]) -> None:
    manifest = Manifest.from_dict(content)
    stage = manifest.stages["det_backbone"]
    assert stage.inputs == (Port("pixels", "float32", (1, 3, "H", "W")),)
    assert [v.bucket for v in stage.variants] == [(64, 64), (64, 96)]
    assert stage.ports("det_backbone").stage == "det_backbone"
    assert manifest.model.superlink["gen"].table is None
    assert manifest.model.detector is not None and manifest.model.detector.max_text_len == 256
    assert manifest.preprocessing().clip.std == (0.25, 0.25, 0.25)
    assert manifest.tokenizer.controls["[DET]"] == 258


def test_a_bundle_without_detector_is_fine(content: dict[str, Any]) -> None:
    del content["model"]["detector"], content["preprocess"]["detector"]
    del content["stages"]["det_backbone"]
    manifest = Manifest.from_dict(content)
    assert manifest.model.detector is None and manifest.preprocessing().detector is None


@pytest.fixture
def llm_content() -> dict[str, Any]:
    """The manifest of a language model alone, as JSON."""
    names = ("stages/llm_decoder.onnx", "tables/embed_tokens.npy", "tokenizer/tokenizer.json")
    files = {name: {"size": 1, "sha256": "0" * 64} for name in names}
    return {**copy.deepcopy(LLM_EXAMPLE), "files": files}


def test_a_language_model_alone(llm_content: dict[str, Any]) -> None:
    manifest = Manifest.from_dict(llm_content)
    assert json.loads(json.dumps(manifest.to_dict())) == llm_content
    llm = manifest.model.llm
    assert (llm.precision, llm.block_size, llm.cache) == ("int4-awq", 32, "float16")
    for ask in (manifest.vision, manifest.preprocessing):
        with pytest.raises(BundleError, match="a language model alone"):
            ask()


def test_the_precision_of_the_language_model_has_defaults(content: dict[str, Any]) -> None:
    for name in ("precision", "block_size", "cache"):
        del content["model"]["llm"][name]
    llm = Manifest.from_dict(content).model.llm
    assert (llm.precision, llm.block_size, llm.cache) == ("fp32", 0, "float32")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("family", "visionllm_v2", "'model.vision' expected a value in a bundle of family"),
        ("model/vision", EXAMPLE["model"]["vision"], "'model.vision' expected none"),
        ("preprocess", EXAMPLE["preprocess"], "'preprocess' expected none"),
        ("model/llm/precision", "int3", "precision expected fp32, int8, int4, int4-awq"),
        ("model/llm/precision", "fp32", "block_size expected 0 for fp32"),
        ("model/llm/block_size", 0, "a positive number for every other precision, got 0"),
        ("model/llm/cache", "int4", "cache expected float32, float16, int8, got 'int4'"),
    ],
)
def test_refusals_of_a_language_model(
    llm_content: dict[str, Any], path: str, value: object, message: str
) -> None:
    changed(path, value)(llm_content)
    with pytest.raises(BundleError) as refusal:
        Manifest.from_dict(llm_content)
    assert message in str(refusal.value)


def changed(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Set a field by its path; the value DELETE removes it."""

    def change(content: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        where: Any = content
        for part in parents:
            where = where[int(part)] if isinstance(where, list) else where[part]
        if value is DELETE:
            del where[last]
        else:
            where[int(last) if isinstance(where, list) else last] = value

    return change


DELETE = object()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 3, "expected schema 4, which this version reads, got 3"),
        ("schema", True, "got True"),
        ("schema", DELETE, "got None"),
        ("family", DELETE, "'family' is missing"),
        ("family", "", "'family' expected a text"),
        ("family", "gemma", "'family' expected visionllm_v2 or llama, got 'gemma'"),
        ("preprocess", DELETE, "'preprocess' expected a value in a bundle of family"),
        ("famly", "x", "'famly' is not a known field"),
        ("model/llm/head_dim", "4", "'model.llm.head_dim' expected an integer, got str"),
        ("model/llm/head_dim", 0, "'model.llm.head_dim' expected a positive integer"),
        ("model/llm/head_dim", -1, "'model.llm.head_dim'"),
        ("model/llm/head_dim", True, "'model.llm.head_dim' expected an integer, got bool"),
        ("model/llm/head_dim", 4.5, "'model.llm.head_dim' expected an integer, got float"),
        ("model/llm", [], "'model.llm' expected an object, got list"),
        ("model/superlink/det/rows", None, "'model.superlink.det.rows'"),
        ("model/detector/buckets/1", [64], "'model.detector.buckets[1]' expected 2 values, got 1"),
        ("model/detector/buckets/1", [64, 128], "stage 'det_backbone' has graphs for buckets"),
        ("stages/det_backbone/variants/1/bucket", [64, 64], "one graph for each bucket"),
        ("stages/det_backbone/variants", [], "one graph without a bucket"),
        ("stages/vision_encoder/variants/0/bucket", DELETE, "bucket' is missing"),
        ("stages/vision_encoder/inputs/0/dtype", "float", "dtype 'float' is not one of"),
        ("stages/vision_encoder/inputs/0/shape", ["n", 0], "neither a positive number"),
        ("stages/vision_encoder/limits", {"pixel": {"min": [1], "max": [2]}}, "got 'pixel'"),
        ("stages/vision_encoder/limits", {"pixels": {"min": [1], "max": [2]}}, "'pixels': 4"),
        ("preprocess/clip/std", [1, 0, 1], "std expected no zeros"),
        ("preprocess/clip/mean", [1, 1], "expected 3 values, got 2"),
        ("tokenizer/space_after_control", 1, "expected true or false, got int"),
        ("files/tables~embed_tokens.npy", DELETE, ""),
        ("model/embed_table", "tables/other.npy", "model.embed_table names 'tables/other.npy'"),
        ("model/embed_table", "../secret", "path '../secret' is not allowed"),
    ],
)
def test_refusals(content: dict[str, Any], path: str, value: object, message: str) -> None:
    if "~" in path:
        del content["files"]["tables/embed_tokens.npy"]
        message = "model.embed_table names 'tables/embed_tokens.npy', which 'files' does not list"
    else:
        changed(path, value)(content)
    with pytest.raises(BundleError) as refusal:
        Manifest.from_dict(content)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"size": 1},
        {"size": -1, "sha256": "0" * 64},
        {"size": 1, "sha256": "0" * 63},
        {"size": 1, "sha256": "Z" * 64},
    ],
)
def test_file_entries(content: dict[str, Any], entry: dict[str, object]) -> None:
    content["files"]["tables/embed_tokens.npy"] = entry
    with pytest.raises(BundleError, match="embed_tokens"):
        Manifest.from_dict(content)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_not_an_object(data: object) -> None:
    with pytest.raises(BundleError, match="expected an object"):
        Manifest.from_dict(data)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "a/../../x", "a/..", "./a", "a//b", "", "a/", "C:/x", "a\\b", "a\nb",
     "a\0b", "manifest.json"],
)  # fmt: skip
def test_paths_that_lead_out(path: str) -> None:
    with pytest.raises(BundleError, match="is not allowed"):
        check_relative(path, "test")


@pytest.mark.parametrize("path", ["a", "a/b.npy", "a/..b", ".hidden/x", "a b/c"])
def test_paths_that_stay_inside(path: str) -> None:
    check_relative(path, "test")
