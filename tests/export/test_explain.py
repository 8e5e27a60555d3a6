"""`explain`: the plan of a build, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from visionllm_edge.export.explain import Choices, explain_bundle
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.manifest import StageSpec
from visionllm_edge.runtime.targets import TARGETS


def _explain(bundle: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["explain", str(bundle), *arguments])


def _stages(bundle: Path) -> Mapping[str, StageSpec]:
    return Bundle.open(bundle, verify=False).manifest.stages


def test_the_plan_of_an_older_device_with_a_comparison(tiny_bundle: Path) -> None:
    result = _explain(tiny_bundle, "--target", "jetson-orin-jp6", "--check")
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "backend   TensorRT 10.3" in text
    assert "proof     not run" in text
    assert "graph llm_decoder\n  precision fp16, opset 20," in text
    refused = "tensor_scatter refused: TensorRT 10.3 has no TensorScatter"
    assert f"4 CachedAttention as cached_attention: {refused}; explicit mask" in text
    assert "2 MultiScaleDeformableAttention as plugin" in text
    assert "in        past_key_values.0.key float16 [1, 3, 1024, 32] and 7 alike" in text
    assert "profile   prefill: hidden_rows 1 .. 1 .. 1024" in text
    assert "profile   decode: inputs_embeds 1x1x192 .. 1x1x192 .. 1x65x192" in text
    assert "check     operators, opset and GridSample: taken by TensorRT 10.3" in text
    # Of one variant of every stage; those with deformable attention or prompt pooling hold plugins.
    assert text.count("numbers: cannot run here, the plugin's function is stripped") == 6
    assert text.count("numbers in ONNX Runtime: right") == len(_stages(tiny_bundle)) - 6
    assert text.count("numbers: not compared, the golden run is of another bucket") == sum(
        len(spec.variants) - 1 for spec in _stages(tiny_bundle).values()
    )


def test_the_plan_as_json(tiny_bundle: Path) -> None:
    arguments = ["--target", "rtx-ada", "--no-plugins", "--json"]
    result = _explain(tiny_bundle, *arguments, "--precision", "llm_decoder=fp32")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["target"]["name"] == "rtx-ada"
    graphs = {(g["stage"], str(g["bucket"])): g for g in plan["graphs"]}
    assert len(graphs) == sum(len(spec.variants) for spec in _stages(tiny_bundle).values())
    assert graphs["llm_decoder", "None"]["precision"] == "fp32"
    assert graphs["llm_decoder", "None"]["kept_in_fp32"] == {}
    small = graphs["det_decoder", "[128, 128]"]
    assert small["precision"] == "fp16"
    assert small["kept_in_fp32"]["selection"] > 0
    assert {form["form"] for form in small["forms"]} == {"gather"}


def test_the_cpu_has_a_plan_too(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle, verify=False)
    plans = {plan.name: plan for plan in explain_bundle(bundle, TARGETS["cpu"], Choices())}
    assert {form.form for form in plans["det_encoder.128x128"].forms} == {"cpu_kernel"}
    assert plans["llm_decoder"].profiles == {}
    assert plans["llm_decoder"].checks == ()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "toaster"], "target 'toaster'"),
        (["--target", "cpu", "--precision", "fp16"], "precision 'fp16' expected one of fp32"),
        (["--target", "h100", "--precision", "nose=fp16"], "no stage 'nose'"),
        (["--target", "rtx-ampere", "--precision", "fp8"], "precision 'fp8'"),
        (["--target", "h100", "--precision", "int8"], "--precision llm_decoder=fp16"),
        (["--target", "h100", "--calibration", "nose"], "'nose' is no folder"),
    ],
)
def test_wrong_choices_are_one_message(tiny_bundle: Path, arguments: list[str], words: str) -> None:
    result = _explain(tiny_bundle, *arguments)
    assert result.exit_code == 1
    assert words in result.stderr


def test_unknown_stages_are_refused_before_any_work(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle, verify=False)
    with pytest.raises(ConfigError, match="no stage 'nose'"):
        explain_bundle(bundle, TARGETS["h100"], Choices(stage_precision={"nose": "fp16"}))
