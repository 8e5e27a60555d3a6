"""The plan of a kit: read back as written, and every inconsistency refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.engines.small_kit import attention_plan, sums_plan, write_kit
from visionllm_edge.runtime.engines.kit_folder import Kit
from visionllm_edge.runtime.engines.plan import KIT_NAME, KitPlan, ShapeRange, StagePlan
from visionllm_edge.runtime.errors import BundleError


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return write_kit(tmp_path / "kit")


def content(kit: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((kit / KIT_NAME).read_text(encoding="utf-8"))
    return data


def test_a_plan_comes_back_as_it_was(kit: Path) -> None:
    plan = Kit.open(kit).plan
    assert KitPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert plan.stages == (sums_plan(), attention_plan())


def test_names_and_plugin_operators() -> None:
    plan = StagePlan("det", "graphs/a", "engines/a", "fp16", bucket=(128, 192))
    assert plan.name == "det.128x192"
    assert attention_plan("plugin").plugin_ops == ("MultiScaleDeformableAttention",)
    assert attention_plan("function").plugin_ops == ()


@pytest.mark.parametrize("bad", [((1,), (2,), (1,)), ((1, 1), (1,), (1,))])
def test_a_range_must_be_one(bad: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ValueError):
        ShapeRange(*bad)


def change_schema(data: dict[str, Any]) -> None:
    data["schema"] = 99


def add_field(data: dict[str, Any]) -> None:
    data["stages"][0]["precison"] = "fp32"


def leave_kit(data: dict[str, Any]) -> None:
    data["stages"][0]["graph"] = "../graphs/sums.onnx"


def write_outside(data: dict[str, Any]) -> None:
    data["stages"][0]["engine"] = "/engines/sums.engine"


def payload_outside(data: dict[str, Any]) -> None:
    data["payload"]["../x"] = "files/tokenizer/tokenizer.json"


def same_name(data: dict[str, Any]) -> None:
    data["stages"].append(data["stages"][0])


def bad_range(data: dict[str, Any]) -> None:
    data["stages"][0]["profiles"][0]["shapes"]["x"]["opt"] = [99, 64]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change_schema, "schema"),
        (add_field, "precison"),
        (leave_kit, "does not list"),
        (write_outside, "not allowed"),
        (payload_outside, "not allowed"),
        (same_name, "different names"),
        (bad_range, "min <= opt <= max"),
    ],
)
def test_a_bad_plan_is_refused(kit: Path, damage: Any, words: str) -> None:
    data = content(kit)
    damage(data)
    with pytest.raises(BundleError, match=words):
        KitPlan.from_dict(data)


def test_stages_are_selected_by_stage_and_by_size(kit: Path) -> None:
    plan = Kit.open(kit).plan
    assert plan.selected(()) == plan.stages
    assert [p.name for p in plan.selected(("attention",))] == ["attention"]
    with pytest.raises(BundleError, match="no stage 'nope'; it has sums, attention"):
        plan.selected(("nope",))


def test_a_kit_with_another_bundle_schema_is_refused_before_the_build(kit: Path) -> None:
    data = content(kit)
    data["manifest"]["schema"] = 1
    (kit / KIT_NAME).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BundleError, match="schema"):
        Kit.open(kit)


def test_files_are_checked(kit: Path) -> None:
    opened = Kit.open(kit)
    digests = opened.verify_stage(opened.plan.stage("sums"))
    assert sorted(digests) == ["graphs/sums.onnx", "graphs/sums.weights"]
    opened.verify_rest()

    weights = kit / "graphs" / "sums.weights"
    good = weights.read_bytes()
    weights.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(BundleError, match=r"sums\.weights.*changed"):
        opened.verify_stage(opened.plan.stage("sums"))
    weights.write_bytes(good + b"x")
    with pytest.raises(BundleError, match=r"sums\.weights.*size"):
        Kit.open(kit)
    weights.write_bytes(good)
    (kit / "files" / "tokenizer" / "tokenizer.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json.*changed"):
        opened.verify_rest()


def test_extra_missing_and_linked_files_are_refused(kit: Path) -> None:
    extra = kit / "graphs" / "extra.onnx"
    extra.write_bytes(b"x")
    with pytest.raises(BundleError, match=r"extra\.onnx.*extra"):
        Kit.open(kit)
    extra.unlink()
    extra.symlink_to(kit / "graphs" / "sums.onnx")
    with pytest.raises(BundleError, match="link"):
        Kit.open(kit)
    extra.unlink()
    (kit / "graphs" / "sums.onnx").unlink()
    with pytest.raises(BundleError, match=r"sums\.onnx.*missing"):
        Kit.open(kit)


def test_a_folder_that_is_no_kit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"kit\.json"):
        Kit.open(tmp_path)


def test_the_build_folder_is_not_part_of_the_kit_and_only_one_builds(kit: Path) -> None:
    opened = Kit.open(kit)
    with opened.building():
        opened.built("sums", "log").write_text("x", encoding="utf-8")
        Kit.open(kit)
        with pytest.raises(BundleError, match="another process"), opened.building():
            pass
