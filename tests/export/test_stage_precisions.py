"""Which precision each stage of a build gets."""

from __future__ import annotations

import pytest

from visionllm_edge.export.stage_precisions import precisions_for, stage_precisions
from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.ports import Port, StagePorts
from visionllm_edge.runtime.targets import TARGETS

ADA, CPU = TARGETS["rtx-ada"], TARGETS["cpu"]


@pytest.fixture
def stages() -> dict[str, StagePorts]:
    """Three stages, all with the same ends."""
    ends = (Port("x", "float32", (1, 4)),)
    names = ("vision_encoder", "det_masks", "gen_unet")
    return {name: StagePorts(name, ends, ends) for name in names}


def test_precisions_of_the_command_line() -> None:
    assert precisions_for(("fp16", "det_masks=fp32")) == ("fp16", {"det_masks": "fp32"})
    for twice in (("fp16", "fp32"), ("a=fp16", "a=fp16")):
        with pytest.raises(ConfigError, match="given twice"):
            precisions_for(twice)


def test_eight_bits_for_all_stages_reach_those_with_a_calibration(
    stages: dict[str, StagePorts],
) -> None:
    assert stage_precisions(stages, ADA, "int8", {}) == {
        "vision_encoder": "int8",
        "det_masks": "int8",
        "gen_unet": "fp16",
    }
    assert set(stage_precisions(stages, ADA, "fp32", {}).values()) == {"fp32"}


def test_eight_bits_for_all_stages_leave_the_decoder_alone_on_a_processor(
    stages: dict[str, StagePorts],
) -> None:
    assert stage_precisions(stages, CPU, "int8", {}) == {
        "vision_encoder": "int8",
        "det_masks": "fp32",
        "gen_unet": "fp32",
    }
    by_name = stage_precisions(stages, CPU, "int8", {"det_masks": "int8"})
    assert by_name["det_masks"] == "int8"


def test_eight_bits_by_name_need_a_calibration(stages: dict[str, StagePorts]) -> None:
    assert stage_precisions(stages, ADA, None, {"det_masks": "int8"})["det_masks"] == "int8"
    with pytest.raises(
        ConfigError, match=r"'gen_unet': precision expected .* got int8, which only"
    ):
        stage_precisions(stages, ADA, None, {"gen_unet": "int8"})
    assert stage_precisions(stages, ADA, None, {"gen_unet": "fp32"})["gen_unet"] == "fp32"
