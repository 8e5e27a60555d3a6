"""Stages of the tiny bundle in int8 and fp8: the gate, planted faults, refusals, engines."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from tests.runtime.engines.small_kit import needs_rtx
from visionllm_edge.export.calibration import Calibrator
from visionllm_edge.export.calibration_inputs import MIN_PICTURES, StageInputs, load_pictures
from visionllm_edge.export.canonical import load_canonical
from visionllm_edge.export.check_lowered import Golden, check_lowered
from visionllm_edge.export.kit import KitOptions, make_kit
from visionllm_edge.export.lowering import lower
from visionllm_edge.export.passes.quantize_dequantize import Quantization
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.engines.kit_build import BuildOptions, build_kit
from visionllm_edge.runtime.engines.kit_folder import Kit
from visionllm_edge.runtime.errors import ConfigError, ExportError, InputError, ParityError
from visionllm_edge.runtime.shapes_world import make_scene
from visionllm_edge.runtime.targets import TARGETS

pytestmark = pytest.mark.slow

ADA = TARGETS["rtx-ada"]
STAGE = "vision_encoder"


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle, verify=False)


@pytest.fixture(scope="module")
def plans(bundle: Bundle) -> dict[str, Quantization]:
    calibrator = Calibrator(bundle)
    return {name: calibrator.calibrate(STAGE, None, name) for name in ("int8", "fp8")}


def _lowered(bundle: Bundle, plan: Quantization) -> ir.Model:
    model = load_canonical(bundle, STAGE)
    lower(model, ADA, precision=plan.precision, plugins=False, quantization=plan)
    return model


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_quantised_encoder_passes_the_gate(
    bundle: Bundle, plans: dict[str, Quantization], precision: str
) -> None:
    plan = plans[precision]
    assert set(plan.kept.values()) >= {"picture", "last"}
    assert len(plan.layers) > 10
    report = check_lowered(_lowered(bundle, plan), Golden(bundle, STAGE), precision=precision)
    assert all(tensor.ok for tensor in report)
    limits = Golden(bundle, STAGE).limits
    assert limits["fp16"]["image_tokens"] < limits[precision]["image_tokens"]
    # It is really in eight bits: fp16's gate refuses it.
    with pytest.raises(ParityError):
        check_lowered(_lowered(bundle, plan), Golden(bundle, STAGE), precision="fp16")


@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_a_wrong_scale_is_refused(
    bundle: Bundle, plans: dict[str, Quantization], factor: float
) -> None:
    plan = plans["int8"]
    wrong = {name: factor * largest for name, largest in plan.ranges.items()}
    broken = _lowered(bundle, dataclasses.replace(plan, ranges=wrong))
    with pytest.raises(ParityError, match="output 'image_tokens' is wrong"):
        check_lowered(broken, Golden(bundle, STAGE), precision="int8")


def test_one_wrong_weight_scale_is_refused(bundle: Bundle, plans: dict[str, Quantization]) -> None:
    model = _lowered(bundle, plans["int8"])
    scale = next(
        value for name, value in model.graph.initializers.items()
        if name.endswith(".scale.float16") and ".int8" in name
    )  # fmt: skip
    assert scale.const_value is not None
    wrong = (2 * scale.const_value.numpy().astype(np.float32)).astype(np.float16)
    scale.const_value = ir.Tensor(wrong, name=scale.name)
    with pytest.raises(ParityError):
        check_lowered(model, Golden(bundle, STAGE), precision="int8")


def test_the_calibration_is_repeatable(bundle: Bundle, plans: dict[str, Quantization]) -> None:
    assert Calibrator(bundle).calibrate(STAGE, None, "int8") == plans["int8"]


def test_lowering_wants_the_calibration_of_its_precision(
    bundle: Bundle, plans: dict[str, Quantization]
) -> None:
    for plan in (None, plans["fp8"]):
        with pytest.raises(ExportError, match="precision 'int8' expected its calibration"):
            lower(load_canonical(bundle, STAGE), ADA, precision="int8", quantization=plan)


def test_pictures_of_a_folder(bundle: Bundle, tmp_path: Path) -> None:
    for index in range(MIN_PICTURES):
        with pytest.raises(ConfigError, match=f"expected at least 16 pictures.*got {index}"):
            load_pictures(tmp_path)
        scene = make_scene(np.random.default_rng(index), width=100, height=80)
        Image.fromarray(scene.image).save(tmp_path / f"{index}.png")
    pictures = load_pictures(tmp_path)
    assert len(pictures) == MIN_PICTURES
    inputs = StageInputs(bundle, pictures)
    assert len(inputs.runs(STAGE, None)) == MIN_PICTURES
    (size,) = {run["pixels"].shape for run in inputs.runs("det_backbone", (128, 192))}
    assert size == (1, 3, 128, 192)
    with pytest.raises(InputError, match=r"expected a file classes\.txt"):
        inputs.runs("det_masks", (128, 128))
    (tmp_path / "classes.txt").write_text("circle\nstar\n", encoding="utf-8")
    assert load_pictures(tmp_path).classes == ("circle", "star")


def test_stages_behind_the_language_model_get_what_the_pipeline_hands_them(bundle: Bundle) -> None:
    inputs = StageInputs(bundle, load_pictures(None))
    for stage in ("det_encoder", "det_decoder", "det_masks"):
        runs = inputs.runs(stage, (128, 128))
        ports = {port.name for port in bundle.manifest.stages[stage].ports(stage).inputs}
        assert len(runs) == MIN_PICTURES
        assert all(set(run) == ports for run in runs)


@needs_rtx
@pytest.mark.trt
def test_a_kit_with_an_int8_stage_is_built(bundle: Bundle, tmp_path: Path) -> None:
    notes: list[str] = []
    options = KitOptions(plugins=False, stage_precision={STAGE: "int8"})
    kit = Kit.open(make_kit(bundle.root, tmp_path / "kit", "rtx-ada", options, notes.append))
    assert any(note.startswith(f"{STAGE}: 2") and "layers in int8" in note for note in notes)
    relative = f"reports/quantization.{STAGE}.json"
    report = json.loads(kit.file(relative).read_text(encoding="utf-8"))
    assert kit.plan.payload[relative] == relative and report["precision"] == "int8"
    assert report["pictures"] == "the shapes world"
    (plan,) = [plan for plan in kit.plan.stages if plan.stage == STAGE]
    assert plan.golden is not None
    assert plan.golden.limits == Golden(bundle, STAGE).limits["int8"]
    weights = kit.root / "graphs" / f"{STAGE}.weights"
    canonical = bundle.root / "stages" / f"{STAGE}.weights"
    assert weights.stat().st_size < 0.4 * canonical.stat().st_size
    (record,) = build_kit(kit.root, None, BuildOptions(stages=(STAGE,))).records
    assert record.engine_bytes > 0
