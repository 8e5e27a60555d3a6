"""Vision tower and bridge against transformers' CLIP."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests.export.components.weights import randomise
from visionllm_edge.export.components.vision_encoder import VisionTower, make_bridge
from visionllm_edge.export.config import VisionConfig

CONFIG = VisionConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=56,
    patch_size=14,
)


def make(output_layer: int, config: VisionConfig = CONFIG) -> VisionTower:
    tower = VisionTower(config, output_layer).eval()
    randomise(tower)
    return tower


def tiles(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def hidden_states(tower: VisionTower, image: Tensor) -> tuple[Tensor, ...]:
    """All hidden states of transformers' own model: the embeddings, then each layer."""
    model: Any = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=56,
            patch_size=14,
            hidden_act="quick_gelu",
            attn_implementation="eager",  # type: ignore[call-arg]  # not declared
        )
    )
    model.load_state_dict(tower.vision_model.state_dict())
    states = model.eval()(image, output_hidden_states=True).hidden_states
    assert len(states) == 5
    return tuple(states)


@pytest.mark.parametrize("output_layer", [-1, -2, -3, -4])
@torch.no_grad()
def test_tower_gives_the_asked_hidden_state(output_layer: int) -> None:
    tower = make(output_layer)
    states = hidden_states(tower, tiles())
    found = tower(tiles())
    assert found.shape == (3, 16, 32)
    torch.testing.assert_close(found, states[output_layer][:, 1:], atol=1e-5, rtol=1e-5)
    for other, state in enumerate(states):
        if other != 5 + output_layer:
            assert float((found - state[:, 1:]).abs().max()) > 1e-2


@torch.no_grad()
def test_the_activation_is_the_configured_one() -> None:
    tower = make(-2, dataclasses.replace(CONFIG, hidden_act="gelu"))
    expected = hidden_states(tower, tiles())[-2][:, 1:]
    assert float((tower(tiles()) - expected).abs().max()) > 1e-3


@torch.no_grad()
def test_layers_behind_the_output_do_not_matter() -> None:
    tower = make(-2)
    before = tower(tiles())
    unused = (tower.vision_model.encoder.layers[3], tower.vision_model.post_layernorm)
    for module in unused:
        randomise(module, seed=9)
    assert torch.equal(tower(tiles()), before)
    randomise(tower.vision_model.encoder.layers[2], seed=9)
    assert not torch.equal(tower(tiles()), before)


@pytest.mark.parametrize(("row", "col"), [(0, 0), (1, 2), (3, 0)])
@torch.no_grad()
def test_patches_are_row_major(row: int, col: int) -> None:
    tower = make(-5)  # no layer at all: every token depends on its own patch alone
    image = tiles(1)
    other = image.clone()
    other[:, :, 14 * row : 14 * row + 14, 14 * col : 14 * col + 14] += 1
    changed = (tower(image) - tower(other)).abs().amax(-1)[0] > 0
    assert changed.nonzero().flatten().tolist() == [4 * row + col]


@torch.no_grad()
def test_bridge() -> None:
    bridge = make_bridge(8, 12)
    randomise(bridge)
    assert set(bridge.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    first, last = bridge[0], bridge[2]
    hidden = first(x)
    exact = last(0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)))
    torch.testing.assert_close(bridge(x), exact, atol=1e-5, rtol=1e-5)
    quick = last(hidden * torch.sigmoid(1.702 * hidden))
    assert float((bridge(x) - quick).abs().max()) > 1e-3
