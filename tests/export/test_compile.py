"""The driver on a small random checkpoint: what is written, reused, refused and never published."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.export.small_checkpoint import small_config, write_small_checkpoint, write_weights
from visionllm_edge.export import build_stage as build_stage_module
from visionllm_edge.export import compile as compile_module
from visionllm_edge.export import end_to_end as end_to_end_module
from visionllm_edge.export.cache import StageCache
from visionllm_edge.export.calibration_inputs import CALIBRATED
from visionllm_edge.export.canonical import load_canonical
from visionllm_edge.export.compile import CompileReport, compile_checkpoint
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.export.lowering import LoweredNode, lower
from visionllm_edge.export.progress import Progress
from visionllm_edge.export.reference import reference_model
from visionllm_edge.export.stages import stages_of
from visionllm_edge.export.verify import verify_bundle
from visionllm_edge.runtime.bundle import Bundle, sha256_of_file
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.errors import BundleError, CheckpointError, ConfigError, ParityError
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.targets import Target

pytestmark = pytest.mark.slow

SMALL = config_from_dict(small_config(300), name="small")
NAMES = tuple(stage.name for stage in stages_of(SMALL))
DETECTOR = tuple(name for name in NAMES if name.startswith("det_"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> StageCache:
    return StageCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def report(
    checkpoint: Path, cache: StageCache, tmp_path_factory: pytest.TempPathFactory
) -> CompileReport:
    return compile_checkpoint(checkpoint, tmp_path_factory.mktemp("out") / "bundle", cache=cache)


@pytest.fixture
def copy(report: CompileReport, tmp_path: Path) -> Path:
    return shutil.copytree(report.bundle, tmp_path / "copy")


def _rewrite(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and let its hashes follow the files."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    for relative, entry in manifest["files"].items():
        entry["sha256"] = sha256_of_file(bundle / relative)
        entry["size"] = (bundle / relative).stat().st_size
    path.write_text(json.dumps(manifest))


def test_the_bundle_opens_and_holds_every_stage(report: CompileReport) -> None:
    assert report.built == NAMES
    assert report.reused == ()
    bundle = Bundle.open(report.bundle)
    assert tuple(bundle.manifest.stages) == NAMES
    for name, stage in bundle.manifest.stages.items():
        buckets = [variant.bucket for variant in stage.variants]
        assert buckets == ([(96, 96), (96, 128)] if name in DETECTOR else [None])
    assert bundle.manifest.model.superlink["det"].decoder == "detector"
    assert bundle.manifest.model.superlink["pose"].table is None
    table = bundle.array(bundle.manifest.model.embed_table)
    llm = bundle.manifest.model.llm
    assert table.shape == (llm.vocab_size, llm.hidden_size)


def test_lowering_reports_name_every_semantic_node(report: CompileReport) -> None:
    stages = Bundle.open(report.bundle).manifest.stages
    forms = {
        name: [entry["form"] for entries in stage.lowering.values() for entry in entries]  # type: ignore[attr-defined]
        for name, stage in stages.items()
    }
    assert forms["llm_decoder"] == ["cpu_kernel"] * 2
    # One layer of the tower. In both sizes: one of the encoder, with attention among the words; two
    # of the decoder, each with attention among the queries and to the words.
    counts = {name: forms[name].count("cpu_kernel") for name in forms}
    assert [counts[name] for name in ("vision_encoder", "det_encoder", "det_decoder")] == [1, 4, 12]
    assert all(set(entries) <= {"cpu_kernel"} for entries in forms.values())
    assert forms["det_masks"] == []


def test_buckets_of_a_stage_share_one_weights_file(report: CompileReport) -> None:
    folder = report.bundle / "stages"
    for name in DETECTOR:
        locations = set()
        for path in folder.glob(f"{name}.*.onnx"):
            model = onnx.load(path, load_external_data=False)
            for tensor in model.graph.initializer:
                locations |= {e.value for e in tensor.external_data if e.key == "location"}
        assert locations == {f"{name}.weights"}


def test_no_path_of_this_machine_is_in_the_bundle(report: CompileReport, checkpoint: Path) -> None:
    for path in report.bundle.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"site-packages" not in content, path
            assert str(checkpoint.parent).encode() not in content, path


def test_every_graph_has_its_canonical_form_beside_it(report: CompileReport) -> None:
    bundle = Bundle.open(report.bundle)
    for name, stage in bundle.manifest.stages.items():
        for variant in stage.variants:
            assert variant.canonical == variant.model.replace(".onnx", ".canonical.onnx")
            model = load_canonical(bundle, name, variant.bucket)
            assert {node.domain for node in model.graph} <= {"", "visionllm"}
            weights = {
                value.const_value.location
                for value in model.graph.initializers.values()
                if isinstance(value.const_value, ir.ExternalTensor)
            }
            assert weights == {f"{name}.weights"}


def test_golden_limits_are_there_for_every_precision(report: CompileReport) -> None:
    for name, stage in Bundle.open(report.bundle).manifest.stages.items():
        golden = stage.parity["golden"]
        assert isinstance(golden, dict), name
        limits = golden["limits"]
        eight = ["int8", "fp8"] if name in CALIBRATED else []
        assert list(limits) == ["fp32", "fp16", "bf16", *eight]
        assert all(set(of) == {port.name for port in stage.outputs} for of in limits.values())
        for output in limits["fp32"]:
            assert limits["fp32"][output] < limits["fp16"][output] < limits["bf16"][output]
            assert all(limits["fp16"][output] <= limits[kind][output] for kind in eight)


def test_the_runtime_answers(report: CompileReport) -> None:
    model = VisionLLM.load(report.bundle, threads=1)
    image = np.zeros((40, 60, 3), np.uint8)
    assert len(model.segment(image, ["circle", "star"], threshold=0.0, top_k=5).detections) == 5


def test_a_second_compile_reuses_every_stage(
    report: CompileReport, checkpoint: Path, cache: StageCache, tmp_path: Path
) -> None:
    again = compile_checkpoint(checkpoint, tmp_path / "again", cache=cache)
    assert again.built == ()
    assert again.reused == NAMES
    first, second = (Bundle.open(r.bundle).manifest.files for r in (report, again))
    assert {n for n in first if first[n] != second[n]} == set()


def test_only_stages_of_changed_weights_are_built_again(
    report: CompileReport, checkpoint: Path, cache: StageCache, tmp_path: Path
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    write_weights(other, seed=0, detector_seed=9)
    changed = compile_checkpoint(other, tmp_path / "bundle", cache=cache, jobs=2)
    assert changed.built == DETECTOR
    assert changed.reused == ("vision_encoder", "region_encoder", "llm_decoder")


def test_fewer_queries(
    checkpoint: Path, cache: StageCache, report: CompileReport, tmp_path: Path
) -> None:
    fewer = compile_checkpoint(checkpoint, tmp_path / "fewer", cache=cache, jobs=2, queries=8)
    # Only what sees the queries is built anew; by workers, which know the number too.
    assert fewer.built == ("det_decoder", "det_masks")
    manifest = Bundle.open(fewer.bundle).manifest
    assert manifest.model.detector is not None and manifest.model.detector.num_queries == 8
    outputs = manifest.stages["det_decoder"].ports("det_decoder").outputs
    assert [port.shape[1] for port in outputs] == [8, 8, 8]
    # Verifying takes the number from the bundle, for the stages and for the whole chain.
    verified = verify_bundle(fewer.bundle, checkpoint=checkpoint)
    assert {"det_decoder", "det_masks"} <= {verdict.stage for verdict in verified.stages}
    picture = np.zeros((96, 96, 3), np.uint8)
    answers = [
        model.detect(picture, ["circle"], threshold=0.0, masks=False)
        for model in (
            VisionLLM.load(fewer.bundle),
            reference_model(fewer.bundle, checkpoint),
            VisionLLM.load(report.bundle),
        )
    ]
    assert [len(answer.detections) for answer in answers] == [8, 8, 20]


def test_progress_names_the_stages(
    report: CompileReport, checkpoint: Path, cache: StageCache, tmp_path: Path
) -> None:
    lines: list[str] = []

    class Recorder(Progress):
        def step(self, text: str, *, seconds: float | None = None) -> None:
            lines.append(text)

    compile_checkpoint(checkpoint, tmp_path / "bundle", cache=cache, progress=Recorder(silent=True))
    assert [line for line in lines if "unchanged" in line] == [
        f"{name}: unchanged, taken from the cache" for name in NAMES
    ]


def _broken_lower(
    model: ir.Model, target: Target, *, precision: str | None = None
) -> list[LoweredNode]:
    entries = lower(model, target, precision=precision)
    value = max(model.graph.initializers.values(), key=lambda v: v.const_value.nbytes)  # type: ignore[union-attr]
    assert value.const_value is not None
    wrong = value.const_value.numpy() * np.float32(1.001)
    value.const_value = ir.Tensor(wrong, name=value.name)
    return entries


def test_a_wrong_graph_is_refused_by_tensor_and_nothing_is_published(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_stage_module, "lower", _broken_lower)
    with pytest.raises(ParityError, match="stage 'vision_encoder': output 'image_tokens' is wrong"):
        compile_checkpoint(checkpoint, tmp_path / "bundle", cache=StageCache(tmp_path / "cache"))
    assert not (tmp_path / "bundle").exists()
    # The language model has a driver of its own and is built before.
    stages = {path.name.split(".")[0] for path in (tmp_path / "cache").glob("**/*.onnx")}
    assert stages <= {"llm_decoder"}
    assert not list((tmp_path / "cache").glob(".partial-*"))


def test_a_chain_that_differs_end_to_end_is_not_published(
    report: CompileReport,
    checkpoint: Path,
    cache: StageCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(end_to_end_module, "END_TO_END_BOX_PX", -1.0)
    with pytest.raises(ParityError, match="end to end: boxes differ"):
        compile_checkpoint(checkpoint, tmp_path / "bundle", cache=cache)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(
    report: CompileReport, checkpoint: Path, cache: StageCache, tmp_path: Path
) -> None:
    class Interrupted(Progress):
        def step(self, text: str, *, seconds: float | None = None) -> None:
            if text.startswith("write tables"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_checkpoint(
            checkpoint, tmp_path / "bundle", cache=cache, progress=Interrupted(silent=True)
        )
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_one_line_when_interrupted(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compile_module, "compile_checkpoint", interrupted)
    result = CliRunner().invoke(main, ["compile", str(checkpoint), "-o", str(tmp_path / "b")])
    assert result.exit_code == 1
    assert result.stderr == "Interrupted. No bundle was written.\n"
    assert result.stdout == ""


def test_the_command_prints_its_result_on_stdout(
    report: CompileReport, checkpoint: Path, cache: StageCache, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    result = CliRunner().invoke(
        main,
        ["compile", str(checkpoint), "-o", str(output), "--cache", str(cache.folder), "--json"],
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["reused"] == list(NAMES)
    assert "unchanged, taken from the cache" in result.stderr
    Bundle.open(output)


def test_wrong_input_is_refused_before_any_work(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="target 'gpu'"):
        compile_checkpoint(checkpoint, tmp_path / "bundle", target="gpu")
    with pytest.raises(ConfigError, match="then `visionllm-edge build BUNDLE --target rtx-ada`"):
        compile_checkpoint(checkpoint, tmp_path / "bundle", target="rtx-ada")
    with pytest.raises(ConfigError, match="queries: expected 2 to 20"):
        compile_checkpoint(checkpoint, tmp_path / "bundle", queries=21)
    with pytest.raises(CheckpointError, match="found nothing"):
        compile_checkpoint(tmp_path / "nowhere", tmp_path / "bundle")
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="expected safetensors"):
        compile_checkpoint(broken, tmp_path / "bundle")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="no bundle"):
        compile_checkpoint(checkpoint, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "notes.txt").read_text() == "mine"


def test_verify_against_golden_files(report: CompileReport) -> None:
    verdict = verify_bundle(report.bundle)
    assert verdict.against == "golden files"
    assert [stage.stage for stage in verdict.stages] == list(NAMES)
    assert verdict.files == len(Bundle.open(report.bundle).manifest.files)


def test_verify_against_the_checkpoint(report: CompileReport, checkpoint: Path) -> None:
    verdict = verify_bundle(report.bundle, checkpoint=checkpoint)
    counts = {stage.stage: stage.comparisons for stage in verdict.stages}
    # Outputs x runs x buckets.
    assert counts["vision_encoder"] == 3 * 3
    assert counts["det_decoder"] == 3 * 3 * 2
    assert verdict.end_to_end is not None
    assert json.dumps(dataclasses.asdict(verdict))


def test_verify_refuses_another_checkpoint(report: CompileReport, tmp_path: Path) -> None:
    other = write_small_checkpoint(tmp_path / "other", seed=5)
    with pytest.raises(ParityError, match="compiled from another checkpoint"):
        verify_bundle(report.bundle, checkpoint=other)


def test_verify_refuses_a_changed_byte(copy: Path) -> None:
    path = copy / "stages" / "llm_decoder.weights"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"llm_decoder\.weights"):
        verify_bundle(copy)


def test_verify_refuses_wrong_numbers_behind_right_hashes(copy: Path) -> None:
    path = copy / "stages" / "det_encoder.weights"
    numbers = np.frombuffer(path.read_bytes(), np.float32) * np.float32(1.01)
    path.write_bytes(numbers.tobytes())
    _rewrite(copy, lambda manifest: None)
    with pytest.raises(ParityError, match="stage 'det_encoder': output 'memory' is wrong"):
        verify_bundle(copy)


def test_verify_needs_golden_files_or_a_checkpoint(copy: Path) -> None:
    def without_golden(manifest: dict[str, Any]) -> None:
        del manifest["stages"]["det_masks"]["parity"]["golden"]

    _rewrite(copy, without_golden)
    with pytest.raises(BundleError, match="stage 'det_masks' carries no golden file"):
        verify_bundle(copy)


def test_the_verify_command(report: CompileReport) -> None:
    result = CliRunner().invoke(main, ["verify", str(report.bundle), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["against"] == "golden files"


def test_the_demo_command(
    report: CompileReport, checkpoint: Path, cache: StageCache, tmp_path: Path
) -> None:
    output = tmp_path / "demo"
    arguments = ["demo", "-o", str(output), "--checkpoint", str(checkpoint), "--seed", "3"]
    result = CliRunner().invoke(main, [*arguments, "--cache", str(cache.folder)])
    assert result.exit_code == 0, result.output
    for word in ("looked for: circle", "caption:", "question:", "answer:", "really there:"):
        assert word in result.stdout
    with Image.open(output / "demo.png") as picture:
        assert min(picture.size) >= 128
    Bundle.open(output / "bundle")
