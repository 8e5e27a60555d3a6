"""Vision and region stages through the ordinary build, for a model with a region encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from tests.export.components.literal_regions import literal_regions
from tests.export.components.weights import randomise
from tests.export.small_checkpoint import small_config
from visionllm_edge.export.build_stage import STAGE_FILE, ModelPair, build_stage, canonical_graph
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.export.stages import stages_of
from visionllm_edge.export.stages.region_encoder import RegionEncoder
from visionllm_edge.export.stages.vision_encoder import VisionEncoder
from visionllm_edge.runtime.backends import StageOptions, load_backend
from visionllm_edge.runtime.errors import ConfigError, ParityError
from visionllm_edge.runtime.targets import find_target

TARGET = "cpu"


def make_config(**changes: Any) -> dict[str, Any]:
    config = small_config(600) | {"use_region_encoder": True} | changes
    config["vis_encoder_config"] |= {"num_hidden_layers": 3, "image_size": 56}
    return config


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    torch.manual_seed(0)
    model = VisionLLM(config_from_dict(make_config(), name="small")).eval()
    randomise(model.region_encoder)
    return ModelPair(model)


def test_the_stage_is_there_with_a_region_encoder_only() -> None:
    with_it = config_from_dict(make_config(), name="small")
    without = config_from_dict(make_config(use_region_encoder=False), name="small")
    assert "region_encoder" in [stage.name for stage in stages_of(with_it)]
    assert "region_encoder" not in [stage.name for stage in stages_of(without)]
    assert not hasattr(VisionLLM(without), "region_encoder")
    assert [port.name for port in VisionEncoder().ports(without).outputs] == ["image_tokens"]


def test_regions_need_the_last_layer_but_one() -> None:
    with pytest.raises(ConfigError, match=r"vis_output_layer: expected .*\(-2\), got -1"):
        config_from_dict(make_config(vis_output_layer=-1), name="small")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("patch_size", 7, "patch_size: expected a multiple of two, which regions need"),
        ("hidden_size", 24, "hidden_size: expected a multiple of 16, which regions need"),
    ],
)
def test_sizes_that_the_mask_stack_cannot_have(field: str, value: int, message: str) -> None:
    config = make_config()
    config["vis_encoder_config"][field] = value
    with pytest.raises(ConfigError, match=message):
        config_from_dict(config, name="small")
    config_from_dict(config | {"use_region_encoder": False}, name="small")


def test_the_graph_holds_the_operator_once(pair: ModelPair) -> None:
    graph = canonical_graph(pair, RegionEncoder(), None)
    operators = [node.op_type for node in graph.graph if node.domain == "visionllm"]
    assert operators == ["GridSamplePromptPool"]


def test_vision_then_regions_equal_the_literal_encoder(pair: ModelPair, tmp_path: Path) -> None:
    """The two built stages, chained as the runtime does, against the unfolded oracle."""
    stages = (VisionEncoder(), RegionEncoder())
    runners = {}
    for stage in stages:
        folder = tmp_path / stage.name
        folder.mkdir()
        build_stage(pair, stage, folder, target=TARGET)
        content = json.loads((folder / STAGE_FILE).read_text())
        assert content["parity"]["runs"], "the gate has compared the stage with the model"
        path = folder / "stages" / f"{stage.name}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        backend = load_backend(find_target(TARGET).backend)
        ports = stage.ports(pair.model.config)
        runners[stage.name] = backend.load_stage(path, ports, StageOptions(threads=1))
    tiles = np.random.default_rng(0).normal(0, 1, (3, 3, 56, 56)).astype(np.float32)
    masks = np.zeros((4, 1, 56, 56), np.float32)
    masks[0, 0, 3:20, 30:50] = masks[1, 0, 55, 0] = masks[2, 0, :, 28] = masks[3] = 1
    seen = {
        name: np.array(array, np.float32)
        for name, array in runners["vision_encoder"].run({"pixels": tiles}).items()
    }
    inputs = {"pixels": tiles[2:], "masks": masks}
    inputs |= {name: seen[name][2:] for name in ("level1", "states")}
    rows = np.array(runners["region_encoder"].run(inputs)["region_tokens"], np.float32)

    model = pair.model
    with torch.no_grad():
        picture = torch.from_numpy(tiles[2:])
        states = model.vis_encoder.vision_model(picture, output_hidden_states=True).hidden_states
        one, two, three = (state[:, 1:].expand(4, -1, -1) for state in states[-3:])
        wanted = literal_regions(
            dict(model.region_encoder.state_dict()),
            picture.expand(4, -1, -1, -1),
            torch.from_numpy(masks),
            (one, two, three),
        )
        tokens = model.image_tokens(torch.from_numpy(tiles))
    np.testing.assert_allclose(rows, wanted.numpy(), atol=2e-5, rtol=2e-5)
    np.testing.assert_allclose(seen["image_tokens"], tokens.numpy(), atol=2e-5, rtol=2e-5)


def _is_share(tensor: ir.TensorProtocol | None) -> bool:
    """Whether this is the number by which the second level counts."""
    return tensor is not None and tensor.shape == () and abs(float(tensor.numpy()) - 2 / 3) < 1e-6


def test_a_wrong_share_of_a_level_is_refused(
    pair: ModelPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parity gate sees a graph that pools other levels than the model."""
    right = RegionEncoder.canonical

    def swapped(self: RegionEncoder, *args: Any, **kwargs: Any) -> ir.Model:
        graph = right(self, *args, **kwargs)
        half = ir.tensor(np.array(0.5, np.float32))
        changed = 0
        for value in graph.graph.initializers.values():
            if _is_share(value.const_value):
                value.const_value = half
                changed += 1
        for node in graph.graph:
            attribute = node.attributes.get("value")
            if attribute is not None and node.op_type == "Constant":
                share = _is_share(attribute.as_tensor())
                node.attributes["value"] = ir.AttrTensor("value", half) if share else attribute
                changed += share
        assert changed == 1, "the share of the second level"
        return graph

    monkeypatch.setattr(RegionEncoder, "canonical", swapped)
    with pytest.raises(ParityError, match="region_tokens"):
        build_stage(pair, RegionEncoder(), tmp_path, target=TARGET)
