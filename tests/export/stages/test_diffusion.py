"""Stages of the diffusion branches through the ordinary build: parity, ports, lowering, parser."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from tests.export.small_checkpoint import small_config
from tests.export.small_diffusion import with_diffusion
from visionllm_edge.export.build_stage import STAGE_FILE, ModelPair, build_stage
from visionllm_edge.export.components.diffusion import AdapterStage
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.export.lowering import KEPT, lower
from visionllm_edge.export.passes.check_operators import check_operators
from visionllm_edge.export.passes.share_weights import WeightFile
from visionllm_edge.export.stages import Stage, stages_of
from visionllm_edge.export.tiny.architecture import tiny_config
from visionllm_edge.runtime.errors import ParityError
from visionllm_edge.runtime.targets import TARGETS, Target

pytestmark = pytest.mark.slow

IMAGE_STAGES = [
    "gen_adapter",
    "gen_unet",
    "gen_vae_decoder",
    "edit_adapter",
    "edit_vae_encoder",
    "edit_unet",
    "edit_vae_decoder",
]
# The branches differ in the UNet's first layer alone, so one graph of each kind is built here.
BUILT = ["gen_adapter", "edit_vae_encoder", "edit_unet", "gen_vae_decoder"]
ENDS = {
    "gen_adapter": (["states [1,64,32]"], ["condition [1,6,16]"]),
    "edit_vae_encoder": (["pixels [1,3,H,W]"], ["latents [1,4,h,w]"]),
    "edit_unet": (
        ["latents [b,8,h,w]", "timestep [1]", "condition [b,6,16]"],
        ["noise [b,4,h,w]"],
    ),
    "gen_vae_decoder": (["latents [1,4,h,w]"], ["pixels [1,3,H,W]"]),
}

PARSE = """
import json, sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
out = {}
for path in sys.argv[1:]:
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parser.parse_from_file(path)
    out[path] = [parser.get_error(i).desc() for i in range(parser.num_errors)]
print(json.dumps(out))
"""


def _model(seed: int = 0) -> VisionLLM:
    torch.manual_seed(seed)
    config = config_from_dict(with_diffusion(small_config(80)), name="small")
    return VisionLLM(config).eval().requires_grad_(False)


def _stage(model: VisionLLM, name: str) -> Stage:
    return next(stage for stage in stages_of(model.config) if stage.name == name)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pair, folders = ModelPair(_model()), {}
    for name in BUILT:
        folders[name] = tmp_path_factory.mktemp(name)
        build_stage(pair, _stage(pair.model, name), folders[name], target="cpu")
    return folders


def _content(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))
    return content


def _canonical(folder: Path, name: str) -> ir.Model:
    return ir.load(folder / "stages" / f"{name}.canonical.onnx")


def test_a_checkpoint_has_the_stages_of_its_branches() -> None:
    full = with_diffusion(tiny_config(80))
    plain = [stage.name for stage in stages_of(config_from_dict(tiny_config(80), name="x"))]
    for flags, expected in (
        ({}, IMAGE_STAGES),
        ({"use_ip2p": False}, IMAGE_STAGES[:3]),
        ({"use_sd": False}, IMAGE_STAGES[3:]),
    ):
        names = [stage.name for stage in stages_of(config_from_dict(full | flags, name="x"))]
        assert [name for name in names if name not in plain] == expected


@pytest.mark.parametrize("name", BUILT)
def test_a_built_stage_passes_parity_at_every_size(built: dict[str, Path], name: str) -> None:
    content = _content(built[name])
    runs = content["parity"]["runs"]
    assert len(runs) == (1 if name == "gen_adapter" else 3)
    for run in runs:
        for output in run["outputs"]:
            assert output["error"] <= output["limit"] < 1e-4 * output["scale"]
    ends = tuple(
        [f"{port['name']} [{','.join(map(str, port['shape']))}]" for port in content[side]]
        for side in ("inputs", "outputs")
    )
    assert ends == ENDS[name]
    assert content["variants"][0]["bucket"] is None


def test_a_wrong_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    right = AdapterStage.forward

    def forward(self: AdapterStage, states: torch.Tensor) -> torch.Tensor:
        return right(self, states) * (1.001 if torch.compiler.is_exporting() else 1.0)

    monkeypatch.setattr(AdapterStage, "forward", forward)
    with pytest.raises(ParityError, match="'gen_adapter': output 'condition' is wrong"):
        build_stage(ModelPair(model), _stage(model, "gen_adapter"), tmp_path, target="cpu")


@pytest.mark.parametrize("name", BUILT)
def test_standard_operators_alone_and_every_release_takes_them(
    built: dict[str, Path], name: str
) -> None:
    assert {node.domain for node in _canonical(built[name], name).graph} == {""}
    releases: dict[str, Target] = {}
    for target in TARGETS.values():
        if target.backend != "onnxruntime":
            releases.setdefault(target.release.label, target)
    for target in releases.values():
        model = _canonical(built[name], name)
        assert lower(model, target, precision="fp16", plugins=False) == []
        assert check_operators(model, target.release) > 0


def test_the_time_step_keeps_its_digits_in_half_precision(built: dict[str, Path]) -> None:
    model = _canonical(built["edit_unet"], "edit_unet")
    lower(model, TARGETS["rtx-ada"], precision="fp16", plugins=False)
    assert model.meta[KEPT]["phase"] > 0
    types = {}
    for node in model.graph:
        for value in node.inputs:
            if value is not None and value.name == "timestep":
                types[node.op_type] = str(node.outputs[0].dtype)
    assert types and set(types.values()) == {"FLOAT"}


def test_eight_bits_are_not_offered_without_a_calibration(built: dict[str, Path]) -> None:
    limits = _content(built["edit_unet"])["parity"]["golden"]["limits"]
    assert set(limits) == {"fp32", "fp16", "bf16"}


def test_the_golden_run_has_latents_of_a_scene(built: dict[str, Path]) -> None:
    with np.load(built["edit_unet"] / "golden" / "edit_unet.npz") as golden:
        latents = golden["in.latents"]
        assert latents.shape == (2, 8, 16, 24) and golden["in.timestep"].tolist() == [500.5]
        assert np.array_equal(latents[0, 4:], latents[1, 4:])  # one picture for the whole batch
        assert not np.array_equal(latents[0, :4], latents[1, :4])
        assert latents[:, 4:].std() > 0
        condition = golden["in.condition"]
        assert np.abs(condition[0] - condition[1]).max() > 1e-3


@pytest.mark.trt
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: pip install 'visionllm-edge[rtx]'",
)
def test_the_parser_takes_every_graph(built: dict[str, Path], tmp_path: Path) -> None:
    paths = []
    for name in BUILT:
        for precision in ("fp32", "fp16"):
            model = _canonical(built[name], name)
            lower(model, TARGETS["rtx-ada"], precision=precision, plugins=False)
            paths.append(tmp_path / f"{name}.{precision}.onnx")
            with WeightFile(paths[-1].with_suffix(".weights")) as weights:
                weights.take(model)
                ir.save(model, paths[-1])
    done = subprocess.run(
        [sys.executable, "-c", PARSE, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"parser exited {done.returncode}:\n{done.stderr}"
    assert {name: errors for name, errors in json.loads(done.stdout).items() if errors} == {}
