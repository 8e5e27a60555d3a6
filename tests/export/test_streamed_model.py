"""A streamed model: its parts come when asked for, go, and are those of the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.export.official_keys import TINY
from tests.export.synthetic import make_state, write_bins, write_config
from visionllm_edge.export import compile as compile_module
from visionllm_edge.export import streamed_model
from visionllm_edge.export.build_stage import ModelPair, build_stage
from visionllm_edge.export.checkpoint import Checkpoint, load_model
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.llm.decoder_plan import DecoderPlan
from visionllm_edge.export.llm.hf_folder import VisionLLMWeights
from visionllm_edge.export.llm.streamed_states import StreamedLanguage
from visionllm_edge.export.quantize.calibration import Calibration
from visionllm_edge.export.quantize.policy import LlmPrecision
from visionllm_edge.export.stages import stages_of
from visionllm_edge.export.streamed_model import StreamedModel, StreamedPair, open_model
from visionllm_edge.runtime.errors import CheckpointError

SIZE = (96, 96)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("official")
    sizes = [list(SIZE)]
    write_config(folder, TINY, visionllm_edge={"det_buckets": sizes, "pose_buckets": sizes})
    write_bins(folder, make_state(TINY))
    return Checkpoint(folder)


@pytest.fixture(scope="module")
def whole(checkpoint: Checkpoint) -> VisionLLM:
    return load_model(checkpoint)


def in_memory(model: nn.Module) -> set[str]:
    return {name for name, tensor in model.named_parameters() if not tensor.is_meta}


def test_parts_come_and_go(checkpoint: Checkpoint) -> None:
    parts = StreamedModel(checkpoint)
    assert not parts.loaded
    _ = parts.model.gdino
    assert parts.loaded == ("gdino",)
    assert {name.partition(".")[0] for name in in_memory(parts.model)} == {"gdino"}
    _ = parts.model.sd.sd_unet
    query = parts.model.sd.llm2sd_mapper_queries
    assert set(parts.loaded) == {"gdino", "sd.llm2sd_mapper_queries", "sd.sd_unet"}
    assert query is parts.model.sd.llm2sd_mapper_queries
    assert torch.equal(query, checkpoint.parameter("sd.llm2sd_mapper_queries").float())
    parts.release()
    assert not parts.loaded and not in_memory(parts.model)
    assert torch.equal(parts.model.sd.llm2sd_mapper_queries, query)


def test_every_part_is_that_of_the_whole_model(checkpoint: Checkpoint, whole: VisionLLM) -> None:
    parts = StreamedModel(checkpoint)
    parts.ready(nn.ModuleList([parts.model.sd, parts.model.ip2p]))
    for name in [name for name, _ in parts.model.named_children() if name != "llm"]:
        getattr(parts.model, name)
    expected = whole.state_dict()
    found = parts.model.state_dict()
    assert set(found) == set(expected)
    for name, tensor in found.items():
        if not name.startswith("llm."):
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected[name]), name
    buffers = dict(whole.named_buffers())
    for name, buffer in parts.model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_the_language_model_is_never_loaded(checkpoint: Checkpoint) -> None:
    with pytest.raises(AssertionError, match="never in memory"):
        _ = StreamedModel(checkpoint).model.llm


def test_hidden_states_layer_by_layer(checkpoint: Checkpoint, whole: VisionLLM) -> None:
    language = StreamedLanguage(VisionLLMWeights(checkpoint))
    rows = language.embed(torch.tensor([3, 8, 20, 3, 39]))[None]
    embed = whole.llm.get_submodule("model.embed_tokens")
    assert torch.equal(rows[0], embed(torch.tensor([3, 8, 20, 3, 39])))
    torch.testing.assert_close(language.hidden(rows), whole.llm.teacher_forced(rows))


@pytest.mark.parametrize(
    "name", ["vision_encoder", "region_encoder", "det_encoder", "gen_adapter", "edit_vae_encoder"]
)
def test_a_stage_computes_the_same(checkpoint: Checkpoint, whole: VisionLLM, name: str) -> None:
    (stage,) = (stage for stage in stages_of(checkpoint.config) if stage.name == name)
    bucket = stage.bucket_list(checkpoint.config)[0]
    ours, theirs = StreamedPair(checkpoint), ModelPair(whole)
    inputs = stage.inputs(theirs.examples, bucket, stage.trace_case)
    streamed = stage.inputs(ours.examples, bucket, stage.trace_case)
    for key, tensor in inputs.items():
        torch.testing.assert_close(streamed[key], tensor)
    wide = {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}
    for got, expected in zip(
        ours.run_true(stage, bucket, wide), theirs.run_true(stage, bucket, wide), strict=True
    ):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    ours.release()
    assert not ours._parts.loaded


def test_a_stage_is_built_alike(checkpoint: Checkpoint, whole: VisionLLM, tmp_path: Path) -> None:
    (stage,) = (stage for stage in stages_of(checkpoint.config) if stage.name == "gen_adapter")
    files: list[dict[str, bytes]] = []
    for name, pair in (("whole", ModelPair(whole)), ("streamed", StreamedPair(checkpoint))):
        folder = tmp_path / name
        folder.mkdir()
        build_stage(pair, stage, folder, target="cpu")
        files.append({path.name: path.read_bytes() for path in (folder / "stages").iterdir()})
    assert files[0] == files[1] and len(files[0]) == 3


def test_the_vision_tower_goes_when_the_calibration_is_made(checkpoint: Checkpoint) -> None:
    pair = StreamedPair(checkpoint)

    def calibrate() -> Calibration:
        _ = pair.model.vis_encoder
        return Calibration((), "none")

    plan = DecoderPlan(VisionLLMWeights(checkpoint), LlmPrecision(), calibrate, "id")
    made = compile_module._releasing(plan, pair).calibration
    assert made is not None and made().origin == "none"
    assert not pair._parts.loaded


def test_small_models_are_kept_whole(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_model(checkpoint).whole
    monkeypatch.setattr(streamed_model, "WHOLE_WEIGHTS", checkpoint.weight_count() - 1)
    pair = open_model(checkpoint)
    assert not pair.whole and isinstance(pair, StreamedPair)


def test_keys_are_checked_before_a_streamed_model_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_model, "WHOLE_WEIGHTS", 0)
    state: dict[str, Tensor] = make_state(TINY)
    del state["unipose.transformer.level_embed"]
    write_config(tmp_path, TINY)
    write_bins(tmp_path, state)
    with pytest.raises(CheckpointError, match=r"1 missing: unipose\.transformer\.level_embed"):
        open_model(Checkpoint(tmp_path))
