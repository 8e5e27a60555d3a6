"""What is not built is refused by the name of the field that asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.export.official_keys import RELEASED
from tests.export.synthetic import config_for
from visionllm_edge.benchmarks.official_config import official_config
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.runtime.errors import ConfigError

# The 26B variant: InternViT-6B and InternLM2 with pixel shuffle.
LARGE = {
    "vl_bridge_type": "internvl_mlp",
    "use_pixelshuffle": True,
    "vis_output_layer": -1,
    "vis_encoder_config": {"model_type": "intern_vit_6b"},
    "llm_config": {"model_type": "internlm2"},
}


def changed(config: Mapping[str, Any], path: str, value: object) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    return {**config, name: changed(config[name], rest, value) if rest else value}


def refused(config: Mapping[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        config_from_dict(config, name="x")
    return str(error.value)


@pytest.mark.parametrize("config", [config_for(RELEASED), official_config()], ids=["test", "ours"])
def test_the_released_configuration_is_read(config: Mapping[str, Any]) -> None:
    read = config_from_dict(config, name="x")
    assert read.use_region_encoder
    assert read.pose is not None and read.generation is not None and read.editing is not None
    assert read.llm.vocab_size == 32026
    assert read.editing.unet.in_channels == 2 * read.generation.unet.in_channels


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("vl_bridge_type", "internvl_mlp"),
        ("use_pixelshuffle", True),
        ("vis_output_layer", -1),
        ("use_llm_lora", True),
        ("vis_encoder_config.model_type", "intern_vit_6b"),
        ("llm_config.model_type", "internlm2"),
        ("gdino_config.backbone_config.model_type", "resnet"),
        ("gdino_config.backbone_config.model_type", "intern_image"),
        ("gdino_config.backbone", "resnet50"),
        ("gdino_config.use_timm_backbone", True),
        ("unipose_config.backbone", "resnet50"),
        ("unipose_config.backbone", "intern_image_h"),
    ],
)
def test_a_field_that_asks_for_something_else(path: str, value: object) -> None:
    message = refused(changed(official_config(), path, value))
    assert message.startswith(f"config.json: {path}: expected ")
    assert repr(value) in message or str(value) in message


def test_the_26b_variant() -> None:
    assert refused({**official_config(), **LARGE}).startswith("config.json: vl_bridge_type: ")


def test_a_detector_with_a_backbone_of_timm() -> None:
    config = changed(official_config(), "gdino_config.backbone_config", None)
    config = changed(config, "gdino_config.backbone", "resnet50")
    assert "gdino_config.backbone: expected None, got 'resnet50'" in refused(config)
