"""Shape ranges from the manifest's sizes."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.runtime.engines.small_kit import MANIFEST
from visionllm_edge.runtime.engines.plan import ShapeRange
from visionllm_edge.runtime.engines.profiles import (
    QUESTION_ROWS,
    axis_ranges,
    cache_rows,
    profiles_for,
)
from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.manifest import DiffusionSpec, ModelSpec, PoseSpec, SchedulerSpec
from visionllm_edge.runtime.typed_json import object_from_json

MODEL = object_from_json(ModelSpec, json.loads(MANIFEST.read_text(encoding="utf-8"))["model"])
RANGES = axis_ranges(MODEL)
DECODER: dict[str, list[int | str]] = {
    "inputs_embeds": [1, "s", 8],
    "past_length": [1],
    "hidden_rows": ["r"],
    "logit_rows": ["l"],
    "past_key_values.0.key": [1, 2, "C", 4],
}


def test_a_stage_of_fixed_sizes_has_no_profile() -> None:
    assert profiles_for("det_backbone", {"pixels": [1, 3, 64, 64]}, RANGES) == ()


def test_the_decoder_has_a_prefill_and_a_decode_profile() -> None:
    prefill, decode = profiles_for("llm_decoder", DECODER, RANGES)
    # 4 tiles of 4 tokens and a question; the whole context of 512 at most.
    best = 16 + QUESTION_ROWS
    assert prefill.use == "prefill" and decode.use == "decode"
    assert prefill.shapes["inputs_embeds"] == ShapeRange((1, 1, 8), (1, best, 8), (1, 512, 8))
    # A token and 8 guessed ones; a routing token has 4 rows, and [GEN]'s 64 feed no decoder here.
    assert decode.shapes["inputs_embeds"] == ShapeRange((1, 1, 8), (1, 1, 8), (1, 9, 8))
    assert prefill.shapes["hidden_rows"] == ShapeRange((1,), (1,), (512,))
    assert decode.shapes["hidden_rows"] == ShapeRange((1,), (1,), (9,))
    assert prefill.shapes["logit_rows"] == decode.shapes["logit_rows"]
    assert decode.shapes["logit_rows"] == ShapeRange((1,), (1,), (9,))
    cache = ShapeRange((1, 2, 512, 4), (1, 2, 512, 4), (1, 2, 512, 4))
    assert {p.shapes["past_key_values.0.key"] for p in (prefill, decode)} == {cache}
    assert "past_length" not in prefill.shapes


def test_a_routing_token_with_more_rows_than_a_guess_makes_the_step() -> None:
    links = {name: dataclasses.replace(link, rows=64) for name, link in MODEL.superlink.items()}
    ranges = axis_ranges(dataclasses.replace(MODEL, superlink=links))
    assert ranges["decode"]["s"] == ranges["decode"]["r"] == (1, 1, 65)


def test_a_fixed_capacity_keeps_its_range() -> None:
    fixed: dict[str, list[int | str]] = {**DECODER, "past_key_values.0.key": [1, 2, 512, 4]}
    ranges = axis_ranges(MODEL)
    assert cache_rows(ranges) == 512
    for profile in profiles_for("llm_decoder", fixed, ranges):
        assert profile.shapes["past_key_values.0.key"].max == (1, 2, 512, 4)


def test_a_smaller_context_bounds_everything() -> None:
    ranges = axis_ranges(MODEL, capacity=3)
    prefill, decode = profiles_for("llm_decoder", DECODER, ranges)
    assert prefill.shapes["inputs_embeds"].max == (1, 3, 8)
    assert decode.shapes["inputs_embeds"].max == (1, 3, 8)
    assert prefill.shapes["past_key_values.0.key"].max == (1, 2, 3, 4)


@pytest.mark.parametrize("capacity", [0, 513])
def test_a_context_beyond_the_model_is_refused(capacity: int) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 512"):
        axis_ranges(MODEL, capacity=capacity)


def test_tiles_classes_and_queries() -> None:
    (tiles,) = profiles_for("vision_encoder", {"pixels": ["n", 3, 16, 16]}, RANGES)
    assert tiles.shapes["pixels"] == ShapeRange((1, 3, 16, 16), (4, 3, 16, 16), (4, 3, 16, 16))
    (found,) = profiles_for("det_masks", {"text": [1, "T", 8], "queries": [1, "k", 8]}, RANGES)
    assert found.shapes["text"] == ShapeRange((1, 1, 8), (1, 64, 8), (1, 256, 8))
    assert found.shapes["queries"] == ShapeRange((1, 1, 8), (1, 40, 8), (1, 40, 8))


def test_a_range_grows_to_hold_the_golden_run_but_the_cache_does_not() -> None:
    (tiles,) = profiles_for(
        "vision_encoder", {"pixels": ["n", 3, 16, 16]}, RANGES, examples={"pixels": (6, 3, 16, 16)}
    )
    assert tiles.shapes["pixels"].max == (6, 3, 16, 16)
    prefill, _ = profiles_for(
        "llm_decoder", DECODER, RANGES, examples={"past_key_values.0.key": (1, 2, 9, 4)}
    )
    assert prefill.shapes["past_key_values.0.key"].min == (1, 2, 512, 4)


def test_an_unknown_axis_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="axis 'Z' has no range"):
        profiles_for("x", {"a": ["Z"]}, RANGES)


def test_a_bundle_without_a_detector_has_no_class_axis() -> None:
    ranges = axis_ranges(dataclasses.replace(MODEL, detector=None))
    assert "T" not in ranges["prefill"]


def test_poses_and_regions_have_their_limits() -> None:
    pose = PoseSpec(
        buckets=((64, 64),),
        shortest_edge=64,
        longest_edge=64,
        divisor=32,
        max_objects=100,
        max_keypoints=68,
        num_instances=50,
    )
    axes = axis_ranges(dataclasses.replace(MODEL, pose=pose, regions=True))["prefill"]
    assert (axes["No"], axes["K"], axes["R"]) == ((1, 1, 100), (1, 17, 68), (1, 4, 16))
    few = axis_ranges(dataclasses.replace(MODEL, pose=dataclasses.replace(pose, max_keypoints=5)))
    assert few["prefill"]["K"] == (1, 5, 5)


def _pictures(default: int, image_guidance: float) -> DiffusionSpec:
    return DiffusionSpec(
        latent_channels=4,
        vae_factor=8,
        scaling_factor=0.18215,
        multiple=8,
        default_height=default,
        default_width=default,
        steps=50,
        guidance=7.5,
        image_guidance=image_guidance,
        scheduler=SchedulerSpec(kind="ddim"),
        empty_prompt="tables/empty.npy",
        condition_tokens=77,
        condition_width=768,
    )


def test_the_branches_that_make_pictures_share_their_ranges() -> None:
    assert not {"b", "h", "w", "H", "W"} & RANGES["prefill"].keys()
    model = dataclasses.replace(MODEL, generation=_pictures(512, 0.0), editing=_pictures(256, 1.5))
    ranges = axis_ranges(model)
    # From a quarter of an edited picture to one and a half of a generated one.
    latents: list[int | str] = ["b", 4, "h", "w"]
    (profile,) = profiles_for("gen_unet", {"latents": latents}, ranges)
    assert profile.shapes["latents"] == ShapeRange((1, 4, 8, 8), (2, 4, 64, 64), (3, 4, 96, 96))
    (profile,) = profiles_for("edit_vae_encoder", {"pixels": [1, 3, "H", "W"]}, ranges)
    assert profile.shapes["pixels"] == ShapeRange(
        (1, 3, 64, 64), (1, 3, 512, 512), (1, 3, 768, 768)
    )
    editing = axis_ranges(dataclasses.replace(MODEL, editing=_pictures(256, 1.5)))
    assert editing["prefill"]["b"] == (1, 3, 3) and editing["prefill"]["h"] == (8, 32, 48)
