"""The folded region encoder against the literal one, its keys, and the stage around it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.export.components.literal_regions import literal_regions
from tests.export.components.weights import randomise
from tests.export.small_checkpoint import small_config
from visionllm_edge.export.components.region_encoder import RegionEncoder, RegionEncoderStage
from visionllm_edge.export.components.vision_encoder import VisionTower
from visionllm_edge.export.config import VisionLLMConfig, config_from_dict

SIDE = 56


def make_config(**vision: int) -> VisionLLMConfig:
    config = config_from_dict(small_config(600), name="small")
    sizes: dict[str, Any] = {"image_size": SIDE, "num_hidden_layers": 3, **vision}
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, **sizes))


def make_encoder(config: VisionLLMConfig) -> RegionEncoder:
    torch.manual_seed(0)
    encoder = RegionEncoder(config).eval()
    randomise(encoder)
    return encoder


def make_masks() -> Tensor:
    """A box, a pixel at the border, a scatter, everything."""
    masks = torch.zeros(4, 1, SIDE, SIDE)
    masks[0, 0, 10:30, 5:41] = 1
    masks[1, 0, SIDE - 1, 0] = 1
    masks[2, 0] = (torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(2)) < 0.02).to(
        torch.float32
    )
    masks[3] = 1
    return masks


def make_inputs(config: VisionLLMConfig, regions: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    cells, width = config.vision.tokens_per_tile, config.vision.hidden_size
    pixels = torch.randn(regions, 3, SIDE, SIDE, generator=generator)
    levels = tuple(torch.randn(regions, cells, width, generator=generator) for _ in range(3))
    return pixels, levels


def test_keys_and_shapes_are_the_released_ones() -> None:
    config = make_config(hidden_size=1024, patch_size=14)
    config = dataclasses.replace(config, llm=dataclasses.replace(config.llm, hidden_size=4096))
    with torch.device("meta"):
        encoder = RegionEncoder(config)
    assert {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()} == {
        "mask_embedding.0.weight": [64, 4, 7, 7],
        "mask_embedding.0.bias": [64],
        "mask_embedding.1.weight": [64],
        "mask_embedding.1.bias": [64],
        "mask_embedding.3.weight": [256, 64, 2, 2],
        "mask_embedding.3.bias": [256],
        "mask_embedding.4.weight": [256],
        "mask_embedding.4.bias": [256],
        "mask_embedding.6.weight": [1024, 256, 1, 1],
        "mask_embedding.6.bias": [1024],
        "up_dim.weight": [4096, 1024],
        "up_dim.bias": [4096],
    }
    assert sum(tensor.numel() for tensor in encoder.parameters()) == 4_540_608


@torch.no_grad()
def test_folded_equals_literal_with_a_picture_per_region() -> None:
    config = make_config()
    encoder, masks = make_encoder(config), make_masks()
    pixels, (one, two, three) = make_inputs(config, len(masks))
    ours = encoder(pixels, masks, one, two, three)
    literal = literal_regions(dict(encoder.state_dict()), pixels, masks, (one, two, three))
    assert ours.shape == (4, config.llm.hidden_size)
    torch.testing.assert_close(ours, literal, atol=2e-6, rtol=2e-6)
    # The levels have their own shares: swapping two of them is another answer.
    assert float((encoder(pixels, masks, one, three, two) - literal).abs().max()) > 1e-2


@torch.no_grad()
def test_one_picture_serves_all_regions() -> None:
    config = make_config()
    encoder, masks = make_encoder(config), make_masks()
    pixels, levels = make_inputs(config, 1)
    ours = encoder(pixels, masks, *levels)
    repeated = [level.expand(len(masks), -1, -1) for level in levels]
    literal = literal_regions(
        dict(encoder.state_dict()),
        pixels.expand(len(masks), -1, -1, -1),
        masks,
        (repeated[0], repeated[1], repeated[2]),
    )
    torch.testing.assert_close(ours, literal, atol=2e-6, rtol=2e-6)
    alone = encoder(pixels, masks[1:2], *levels)
    torch.testing.assert_close(ours[1:2], alone, atol=2e-6, rtol=2e-6)


@torch.no_grad()
def test_a_draw_of_points_comes_near_all_of_them() -> None:
    """The reference draws points of large masks; the mean over draws is what we compute."""
    config = make_config()
    encoder, masks = make_encoder(config), make_masks()[3:]
    pixels, (one, two, three) = make_inputs(config, 1)
    weights = dict(encoder.state_dict())
    ours = encoder(pixels, masks, one, two, three)
    generator = torch.Generator().manual_seed(3)
    draws = torch.stack(
        [
            literal_regions(
                weights, pixels, masks, (one, two, three), limit=300, generator=generator
            )
            for _ in range(60)
        ]
    )
    spread = draws.std(0) / len(draws) ** 0.5
    assert float(draws.std(0).max()) > 1e-3, "the draws differ"
    assert float(((draws.mean(0) - ours) / spread).abs().max()) < 5


@torch.no_grad()
def test_the_masked_pixels_decide() -> None:
    config = make_config()
    encoder, masks = make_encoder(config), make_masks()
    pixels, levels = make_inputs(config, 1)
    rows = encoder(pixels, masks, *levels)
    for one in range(4):
        for other in range(one):
            assert float((rows[one] - rows[other]).abs().max()) > 1e-2


def test_it_trains() -> None:
    config = make_config()
    encoder, masks = make_encoder(config), make_masks()
    pixels, levels = make_inputs(config, len(masks))
    encoder(pixels, masks, *levels).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("layers", [2, 4])
@torch.no_grad()
def test_stage_finishes_the_tower(layers: int) -> None:
    config = make_config(num_hidden_layers=layers)
    tower = VisionTower(config.vision, -2).eval()
    randomise(tower)
    encoder, masks = make_encoder(config), make_masks()
    pixels, _ = make_inputs(config, 1)
    states = tower.vision_model(pixels, output_hidden_states=True).hidden_states
    assert len(states) == layers + 1
    before, last = tower.states(pixels)
    torch.testing.assert_close(before, states[-3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last, states[-2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last[:, 1:], tower(pixels))
    ours = RegionEncoderStage(tower, encoder)(pixels, masks, before[:, 1:], last)
    patches = [state[:, 1:].expand(len(masks), -1, -1) for state in states[-3:]]
    literal = literal_regions(
        dict(encoder.state_dict()),
        pixels.expand(len(masks), -1, -1, -1),
        masks,
        (patches[0], patches[1], patches[2]),
    )
    torch.testing.assert_close(ours, literal, atol=1e-5, rtol=1e-5)
