"""The target table and the facts about releases: complete, consistent, with sources."""

from __future__ import annotations

from dataclasses import fields

import pytest

from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.releases import RELEASES, Release
from visionllm_edge.runtime.targets import PRECISIONS, TARGETS, Target, find_target

_IDENTITY = {"backend", "version", "sources"}


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_rows_are_consistent(target: Target) -> None:
    assert (target.backend, target.tensorrt) in RELEASES
    assert target.release.version == target.tensorrt
    assert target.precision in target.precisions
    assert set(target.precisions) <= set(PRECISIONS)
    assert set(target.precisions) <= set(target.hardware_types)
    assert target.proof in ("tests", "built", "not run")
    assert bool(target.sm) == (target.backend != "onnxruntime")
    assert all((target.device, target.memory, target.system, target.source))


@pytest.mark.parametrize("release", RELEASES.values(), ids=lambda release: release.label)
def test_every_fact_names_its_source(release: Release) -> None:
    facts = {field.name for field in fields(release)} - _IDENTITY
    assert set(release.sources) == facts
    assert all(
        text.startswith(("seen: ", "source: ", "documented: ", "ours: "))
        for text in release.sources.values()
    )


def test_nothing_that_was_never_run_is_called_tested() -> None:
    proofs = {target.backend: set[str]() for target in TARGETS.values()}
    for target in TARGETS.values():
        proofs[target.backend].add(target.proof)
    assert proofs == {"onnxruntime": {"tests"}, "tensorrt_rtx": {"built"}, "tensorrt": {"not run"}}


def test_bf16_is_left_out_where_the_hardware_lacks_it() -> None:
    without = {name for name, target in TARGETS.items() if "bf16" not in target.precisions}
    assert without == {"cpu", "rtx-turing", "jetson-orin-jp6", "jetson-orin-jp7"}


def test_the_function_rule_changes_where_the_parsers_changed() -> None:
    rules = {release.label: release.node_with_function for release in RELEASES.values()}
    assert rules["TensorRT 10.3"] == "function"
    assert rules["TensorRT 10.13"] == "plugin"
    assert rules["TensorRT 10.16"] == rules["TensorRT-RTX 1.7"] == "namespace"


def test_precision_is_resolved_or_refused() -> None:
    orin = find_target("jetson-orin-jp6")
    assert orin.resolve_precision(None) == "fp16"
    assert orin.resolve_precision("fp32") == "fp32"
    with pytest.raises(ConfigError, match="precision 'bf16' expected one of fp32, fp16"):
        orin.resolve_precision("bf16")


def test_eight_bits_where_the_hardware_has_them() -> None:
    quantized = {name: target.quantized for name, target in TARGETS.items()}
    both = {"rtx-ada", "rtx-blackwell", "dgx-spark", "jetson-thor", "jetson-thor-jp72", "h100"}
    assert {name for name, kinds in quantized.items() if "fp8" in kinds} == both | {"b200"}
    assert all("int8" in kinds for kinds in quantized.values())
    for name in ("rtx-turing", "cpu"):
        assert find_target(name).resolve_precision("int8") == "int8"
    for name in ("rtx-turing", "rtx-ampere", "jetson-orin-jp6", "jetson-orin-jp7", "a100"):
        with pytest.raises(ConfigError, match=f"'{name}': precision 'fp8'.*hardware.*has no fp8"):
            find_target(name).resolve_precision("fp8")
    with pytest.raises(ConfigError, match="'cpu': precision 'fp8' expected one of fp32, int8"):
        find_target("cpu").resolve_precision("fp8")


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ConfigError, match="target 'toaster': expected one of cpu, rtx-turing"):
        find_target("toaster")
