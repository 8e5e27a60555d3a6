"""The stages of the keypoint decoder through the ordinary build: torch to graph, compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from tests.export.components.weights import randomise
from tests.export.small_checkpoint import small_config
from tests.export.small_pose import with_pose
from visionllm_edge.export.build_stage import STAGE_FILE, ModelPair, build_stage
from visionllm_edge.export.components import pose_decoder
from visionllm_edge.export.components.geometry import Geometry, inverse_sigmoid
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.export.half_control import run_in_half
from visionllm_edge.export.stages import stages_of
from visionllm_edge.export.stages.pose import PoseStage
from visionllm_edge.export.stages.pose_backbone import PoseBackbone
from visionllm_edge.export.stages.pose_boxes import PoseBoxes
from visionllm_edge.export.stages.pose_encoder import PoseEncoder
from visionllm_edge.export.stages.pose_keypoints import PoseKeypoints
from visionllm_edge.runtime.backends import StageOptions, load_backend
from visionllm_edge.runtime.errors import ParityError
from visionllm_edge.runtime.ports import Array
from visionllm_edge.runtime.targets import find_target

TARGET = "cpu"
STAGES = (PoseBackbone(), PoseEncoder(), PoseBoxes(), PoseKeypoints())
BUCKET = (96, 128)


def make_pair(**changes: Any) -> ModelPair:
    torch.manual_seed(0)
    config = config_from_dict(with_pose(small_config(600), **changes), name="small")
    model = VisionLLM(config).eval()
    randomise(model.unipose)
    return ModelPair(model)


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return make_pair()


@pytest.fixture(scope="module")
def built(pair: ModelPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per stage, each through the parity gate."""
    root = tmp_path_factory.mktemp("pose")
    for stage in STAGES:
        (root / stage.name).mkdir()
        build_stage(pair, stage, root / stage.name, target=TARGET)
    return root


def run(folder: Path, stage: PoseStage, pair: ModelPair, inputs: Mapping[str, Tensor]) -> Any:
    """Outputs of a built stage."""
    path = folder / "stages" / f"{stage.name}.{BUCKET[0]}x{BUCKET[1]}.onnx"
    backend = load_backend(find_target(TARGET).backend)
    runner = backend.load_stage(path, stage.ports(pair.model.config), StageOptions(threads=1))
    arrays: Mapping[str, Array] = runner.run({k: v.numpy() for k, v in inputs.items()})
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def test_the_stages_are_there_with_a_keypoint_decoder_only(pair: ModelPair) -> None:
    names = [stage.name for stage in stages_of(pair.model.config)]
    assert [name for name in names if name.startswith("pose_")] == [s.name for s in STAGES]
    without = config_from_dict(small_config(600), name="small")
    assert not any(stage.name.startswith("pose_") for stage in stages_of(without))
    assert not hasattr(VisionLLM(without), "unipose")


def test_every_graph_is_checked(built: Path) -> None:
    for stage in STAGES:
        content = json.loads((built / stage.name / STAGE_FILE).read_text())
        assert [tuple(v["bucket"]) for v in content["variants"]] == [BUCKET]
        assert content["parity"]["runs"], "the gate has compared the stage with the model"
        for variant in content["variants"]:
            onnx.checker.check_model(str(built / stage.name / variant["model"]), full_check=True)


@torch.no_grad()
def test_the_chain_equals_the_component(built: Path, pair: ModelPair) -> None:
    """Pixels to keypoints through the four graphs, against one pass of the torch module."""
    examples, unipose = pair.examples, pair.model.unipose
    size, count = examples.valid_size(BUCKET, 0.7), 6
    pixels = examples.pixels(BUCKET, 0.7)
    objects, names = examples.text_states(2, seed=5), examples.text_states(count, seed=6)
    maps = run(built / "pose_backbone", STAGES[0], pair, {"pixels": pixels})
    given = {**maps, "valid_size": size, "object_states": objects}
    encoded = run(built / "pose_encoder", STAGES[1], pair, given)
    instances = run(built / "pose_boxes", STAGES[2], pair, {**encoded, "valid_size": size})
    given = {**encoded, **instances, "keypoint_states": names, "valid_size": size}
    found = run(built / "pose_keypoints", STAGES[3], pair, given)

    geometry = Geometry(*BUCKET)
    memory, text = unipose.encode(*unipose.backbone_maps(pixels), size, objects, geometry)
    best, boxes = unipose.instances(memory, text, size, geometry)
    wanted = unipose.keypoints(memory, text, best, boxes, names, size, geometry)
    for tensor, (name, array) in zip(wanted, found.items(), strict=True):
        torch.testing.assert_close(array, tensor, atol=2e-4, rtol=2e-4, msg=name)
    assert found["keypoints"].shape == (1, 4, count, 2)
    assert float(found["keypoints"].std()) > 0.05, "all keypoints in one place prove nothing"


def test_the_reference_mask_is_a_graph_too(tmp_path: Path) -> None:
    pair = make_pair(mask_mode="reference68")
    build_stage(pair, PoseKeypoints(), tmp_path, target=TARGET)
    content = json.loads((tmp_path / STAGE_FILE).read_text())
    assert content["parity"]["runs"]
    keypoints = [port for port in content["outputs"] if port["name"] == "keypoints"]
    assert keypoints[0]["shape"] == [1, 4, "K", 2]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_the_half_precision_control_chooses_the_same_instances(
    stage: PoseStage, pair: ModelPair
) -> None:
    """Box layers stay in fp32, since a choice follows; everything else is rounded."""
    inputs = stage.inputs(pair.examples, BUCKET, stage.trace_case)
    module = stage.module(pair.model, BUCKET)
    with torch.no_grad():
        wanted = module(*inputs.values())
    for found, exact in zip(run_in_half(module, inputs, "fp16"), wanted, strict=True):
        worst = float((found - exact).abs().max() / exact.abs().max())
        assert worst == 0 if stage.name == "pose_boxes" else 1e-6 < worst < 2e-2


def test_another_epsilon_is_refused(
    pair: ModelPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate sees a graph that cuts the inverse sigmoid elsewhere than the model does."""
    right = PoseKeypoints.canonical

    def wrong(self: PoseKeypoints, *args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(pose_decoder, "inverse_sigmoid", lambda x, eps: inverse_sigmoid(x, 0.2))
            return right(self, *args, **kwargs)

    monkeypatch.setattr(PoseKeypoints, "canonical", wrong)
    with pytest.raises(ParityError, match=r"keypoints|boxes"):
        build_stage(pair, PoseKeypoints(), tmp_path, target=TARGET)
