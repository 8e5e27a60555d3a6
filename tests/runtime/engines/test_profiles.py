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
from visionllm_edge.runtime.manifest import ModelSpec
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
