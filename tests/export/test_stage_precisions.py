"""Which precision each stage of a build gets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from visionllm_edge.export.stage_precisions import stage_precisions
from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.manifest import Manifest, StageSpec, Variant
from visionllm_edge.runtime.ports import Port
from visionllm_edge.runtime.targets import TARGETS

ADA = TARGETS["rtx-ada"]


@pytest.fixture
def manifest() -> Manifest:
    """As much of a manifest as is asked for: its stages."""
    ends = (Port("x", "float32", (1, 4)),)
    stage = StageSpec(ends, ends, (Variant(None, "a.onnx", "a.canonical.onnx"),), {}, {})
    names = ("vision_encoder", "det_masks", "gen_unet")
    return cast("Manifest", SimpleNamespace(stages=dict.fromkeys(names, stage)))


def test_eight_bits_for_all_stages_reach_those_with_a_calibration(manifest: Manifest) -> None:
    assert stage_precisions(manifest, ADA, "int8", {}) == {
        "vision_encoder": "int8",
        "det_masks": "int8",
        "gen_unet": "fp16",
    }
    assert set(stage_precisions(manifest, ADA, "fp32", {}).values()) == {"fp32"}


def test_eight_bits_by_name_need_a_calibration(manifest: Manifest) -> None:
    assert stage_precisions(manifest, ADA, None, {"det_masks": "int8"})["det_masks"] == "int8"
    with pytest.raises(ConfigError, match=r"'gen_unet': precision expected .* got int8, for which"):
        stage_precisions(manifest, ADA, None, {"gen_unet": "int8"})
    assert stage_precisions(manifest, ADA, None, {"gen_unet": "fp32"})["gen_unet"] == "fp32"
