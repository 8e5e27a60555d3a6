"""Kits made from the tiny bundle: what is in them, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from tests.runtime.engines.small_kit import needs_rtx
from visionllm_edge.export import kit_kernels
from visionllm_edge.export.kit import KitOptions, make_kit
from visionllm_edge.export.kit_kernels import compiled_for
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.cli import main
from visionllm_edge.runtime.engines.kit_build import BuildOptions, build_kit
from visionllm_edge.runtime.engines.kit_folder import Kit
from visionllm_edge.runtime.errors import BundleError, ConfigError, PluginError

NOTES: list[str] = []


@pytest.fixture(scope="module")
def kit(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    folder = tmp_path_factory.mktemp("kits") / "kit"
    options = KitOptions(stage_precision={"det_masks": "fp32"})
    return Kit.open(make_kit(tiny_bundle, folder, "rtx-ada", options, NOTES.append))


def test_every_graph_of_the_bundle_is_planned(kit: Kit, tiny_bundle: Path) -> None:
    stages = Bundle.open(tiny_bundle).manifest.stages
    expected = [(name, v.bucket) for name, spec in stages.items() for v in spec.variants]
    assert [(plan.stage, plan.bucket) for plan in kit.plan.stages] == expected
    for plan in kit.plan.stages:
        kit.verify_stage(plan)
    kit.verify_rest()
    assert any("det_masks.128x128: fp32" in note for note in NOTES)


def test_each_stage_has_one_golden_file_with_limits_of_its_precision(
    kit: Kit, tiny_bundle: Path
) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    for name, spec in manifest.stages.items():
        plans = [plan for plan in kit.plan.stages if plan.stage == name]
        golden = [plan.golden for plan in plans if plan.golden is not None]
        assert len(golden) == 1
        stored = spec.parity["golden"]
        assert isinstance(stored, dict)
        assert golden[0].limits == stored["limits"][plans[0].precision]
    assert {p.precision for p in kit.plan.stages if p.stage == "det_masks"} == {"fp32"}
    assert {p.precision for p in kit.plan.stages if p.stage != "det_masks"} == {"fp16"}


def test_profiles_hold_the_golden_inputs_and_fix_the_cache(kit: Kit) -> None:
    for plan in kit.plan.stages:
        if plan.golden is None or not plan.profiles:
            continue
        with np.load(kit.file(plan.golden.file)) as stored:
            shapes = {n[3:]: stored[n].shape for n in stored.files if n.startswith("in.")}
        for name, wanted in plan.profiles[0].shapes.items():
            if name.startswith("past_key_values."):
                assert wanted.min == wanted.max  # golden caches are padded to it
            else:
                pairs = zip(wanted.min, shapes[name], wanted.max, strict=True)
                assert all(low <= size <= high for low, size, high in pairs), name
    (decoder,) = [plan for plan in kit.plan.stages if plan.stage == "llm_decoder"]
    assert [profile.use for profile in decoder.profiles] == ["prefill", "decode"]


def test_ports_of_the_bundle_to_be_are_those_of_the_graphs(kit: Kit) -> None:
    names = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}
    stages = json.loads(json.dumps(kit.plan.manifest["stages"]))
    for plan in kit.plan.stages:
        graph = onnx.load(kit.root / plan.graph, load_external_data=False).graph
        types = {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]}
        stage = stages[plan.stage]
        for port in stage["inputs"] + stage["outputs"]:
            assert names.get(types[port["name"]], "int64") == port["dtype"], port
    cache = [p for p in stages["llm_decoder"]["inputs"] if p["name"].startswith("past_key")]
    assert {port["dtype"] for port in cache} == {"float16"}


def test_plugins_bring_their_kernels(kit: Kit) -> None:
    relative = "plugins/MultiScaleDeformableAttention.sm_89.cubin"
    assert kit.plan.payload[relative] == relative
    assert kit.file(relative).read_bytes()[:4] == b"\x7fELF"
    # GB10 (12.1) runs the kernels of 12.0; nothing older runs on it.
    assert [compiled_for(sm) for sm in (87, 90, 121, 130)] == [87, 90, 120, 130]


def test_without_a_compiler_the_kit_says_what_to_do(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(op: str, sm: int) -> None:
        raise RuntimeError(f"{op}: no CUDA compiler here.")

    monkeypatch.setattr(kit_kernels, "compile_kernels", refuse)
    with pytest.raises(PluginError, match=r"no CUDA compiler here.*--no-plugins"):
        make_kit(tiny_bundle, tmp_path / "kit", "rtx-ada")


def test_nothing_of_the_other_target_is_taken_over(kit: Kit) -> None:
    text = json.dumps(kit.plan.manifest)
    assert "onnxruntime" not in json.dumps(kit.plan.manifest["target"])
    assert ".onnx" not in text and "reports/parity.json" not in kit.plan.payload
    assert not any("canonical" in path for path in kit.plan.files)


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("cpu", KitOptions(), "needs no engines"),
        ("nope", KitOptions(), "target 'nope'"),
        ("jetson-orin-jp6", KitOptions(precision="bf16"), "precision 'bf16'"),
        ("rtx-ada", KitOptions(stage_precision={"nope": "fp16"}), "no stage 'nope'"),
        ("rtx-ada", KitOptions(context=3), "context 3"),
        ("rtx-ada", KitOptions(context=10**9), "cache capacity"),
    ],
)
def test_what_cannot_be_made_leaves_nothing(
    tiny_bundle: Path, tmp_path: Path, target: str, options: KitOptions, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_kit(tiny_bundle, tmp_path / "kit", target, options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_kit_is_not_replaced(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x", encoding="utf-8")
    with pytest.raises(BundleError, match="is no kit"):
        make_kit(tiny_bundle, tmp_path / "mine", "rtx-ada")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_context_bounds_the_new_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    options = KitOptions(context=64, plugins=False)
    kit = Kit.open(make_kit(tiny_bundle, tmp_path / "kit", "jetson-orin-jp6", options))
    model = json.loads(json.dumps(kit.plan.manifest["model"]))
    assert model["llm"]["max_positions"] == 64
    (decoder,) = [plan for plan in kit.plan.stages if plan.stage == "llm_decoder"]
    shapes = decoder.profiles[0].shapes
    assert shapes["past_key_values.0.key"].max[2] == 64 == shapes["inputs_embeds"].max[1]
    assert all(plan.plugin_ops == () for plan in kit.plan.stages)
    assert not any(path.startswith("plugins/") for path in kit.plan.files)


@needs_rtx
@pytest.mark.trt
def test_what_was_built_survives_a_new_kit_of_the_same_graphs(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """Also the check that a dropped or changed form would be noticed by the real parser."""
    chosen = BuildOptions(stages=("det_masks.128x128", "det_decoder.128x128"))
    folder = make_kit(tiny_bundle, tmp_path / "kit", "rtx-ada")
    first = build_kit(folder, None, chosen).records
    assert [record.plugins for record in first] == [3, 0]
    make_kit(tiny_bundle, tmp_path / "kit", "rtx-ada")
    second = build_kit(folder, None, chosen).records
    assert [r.engine_sha256 for r in second] == [r.engine_sha256 for r in first]
    assert [dataclasses.replace(r, golden=first[0].golden) for r in second] == [
        dataclasses.replace(r, golden=first[0].golden) for r in first
    ]


@needs_rtx
@pytest.mark.trt
def test_build_on_the_command_line_keeps_its_kit_when_only_a_part_was_built(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONLLM_EDGE_CACHE", str(tmp_path / "cache"))
    arguments = ["build", str(tiny_bundle), "-o", str(tmp_path / "out"), "--target", "rtx-ada"]
    arguments += ["--precision", "fp32", "--no-plugins", "--stage", "det_masks.128x128", "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["bundle"] is None and len(told["stages"]) == 1
    assert not (tmp_path / "out").exists() and (tmp_path / "out.kit" / "kit.json").is_file()
