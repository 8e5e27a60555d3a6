"""Layers of the object decoder, one by one, against transformers' Grounding DINO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.export.components.their_detector import CONFIG, their_detector
from tests.export.components.weights import randomise
from visionllm_edge.export.components import detector_layers
from visionllm_edge.export.components.detector_layers import (
    MLP,
    Attention,
    DecoderLayer,
    EncoderLayer,
)
from visionllm_edge.export.components.geometry import Geometry, LevelGeometry
from visionllm_edge.export.components.object_decoder import ObjectDecoder

BUCKET, VALID = (96, 160), (70, 130)
GEOMETRY = Geometry(*BUCKET)
DIM, QUERIES, TEXTS = CONFIG.d_model, 9, 5

Pair = tuple[ObjectDecoder, Any]


@pytest.fixture
def pair() -> Pair:
    ours = ObjectDecoder(CONFIG).eval()
    randomise(ours)
    return ours, their_detector(ours)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def level() -> LevelGeometry:
    return GEOMETRY.levels(torch.tensor(VALID), DIM, 20.0)


@torch.no_grad()
def encoder_outputs(pair: Pair, index: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Our vision and text, their vision and text of one encoder layer, padded pixels cut off."""
    ours, model = pair
    at = level()
    vision, text = noise(2, GEOMETRY.size, DIM), noise(2, TEXTS, DIM, seed=1)
    positions = noise(GEOMETRY.size, DIM, seed=2)
    layer = ours.model.encoder.layers[index]
    found = layer(vision, text, positions, at, GEOMETRY)
    padded = (at.mask == 0).expand(2, -1)
    sizes = GEOMETRY.spatial_shapes().long()
    (their_vision, their_text), _ = model.model.encoder.layers[index](
        vision_features=vision,
        vision_position_embedding=positions.expand(2, -1, -1),
        spatial_shapes=sizes,
        spatial_shapes_list=list(GEOMETRY.shapes),
        level_start_index=GEOMETRY.level_start_index().long(),
        key_padding_mask=padded,
        reference_points=model.model.encoder.get_reference_points(
            list(GEOMETRY.shapes), at.valid_ratios.expand(2, -1, -1), device=vision.device
        ),
        text_features=text,
        text_attention_mask=torch.zeros(2, TEXTS, dtype=torch.bool),
        text_self_attention_masks=torch.zeros(2, TEXTS, TEXTS, dtype=torch.bool),
        text_position_ids=torch.arange(TEXTS).expand(2, -1),
    )
    keep = at.mask.bool()
    return found[0][:, keep], found[1], their_vision[:, keep], their_text


def test_encoder_layer(pair: Pair) -> None:
    vision, text, their_vision, their_text = encoder_outputs(pair)
    torch.testing.assert_close(vision, their_vision, atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(text, their_text, atol=5e-5, rtol=1e-4)


@torch.no_grad()
def decoder_outputs(pair: Pair, index: int = 1) -> tuple[Tensor, Tensor]:
    ours, model = pair
    at = level()
    x, positions = noise(2, QUERIES, DIM), noise(2, QUERIES, DIM, seed=1)
    memory, text = noise(2, GEOMETRY.size, DIM, seed=2), noise(2, TEXTS, DIM, seed=3)
    boxes = noise(2, QUERIES, 4, seed=4).sigmoid()
    reference = boxes[:, :, None] * at.valid_ratios.repeat(1, 2)
    found = ours.model.decoder.layers[index](
        x, positions, reference, memory, text, at.mask, GEOMETRY
    )
    (expected,) = model.model.decoder.layers[index](
        hidden_states=x,
        position_embeddings=positions,
        reference_points=reference,
        spatial_shapes=GEOMETRY.spatial_shapes().long(),
        spatial_shapes_list=list(GEOMETRY.shapes),
        level_start_index=GEOMETRY.level_start_index().long(),
        vision_encoder_hidden_states=memory,
        vision_encoder_attention_mask=at.mask.bool().expand(2, -1),
        text_encoder_hidden_states=text,
    )
    return found, expected


def test_decoder_layer(pair: Pair) -> None:
    found, expected = decoder_outputs(pair)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)


def _identity(name: str) -> Callable[[nn.Module], None]:
    def plant(layer: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(layer.get_submodule(parent), leaf, nn.Identity())

    return plant


def _exchange(first: str, second: str) -> Callable[[nn.Module], None]:
    """Exchange two modules or two parameters."""

    def plant(layer: nn.Module) -> None:
        parent, _, a = first.rpartition(".")
        owner, b = layer.get_submodule(parent), second.rpartition(".")[2]
        one, two = getattr(owner, a), getattr(owner, b)
        setattr(owner, a, two)
        setattr(owner, b, one)

    return plant


def _turn_offsets(attention: str) -> Callable[[nn.Module], None]:
    """Sampling offsets as (y, x)."""

    def plant(layer: nn.Module) -> None:
        offsets = layer.get_submodule(f"{attention}.sampling_offsets")
        assert isinstance(offsets, nn.Linear)
        pairs = torch.arange(offsets.out_features).view(-1, 2).flip(-1).flatten()
        with torch.no_grad():
            offsets.weight.copy_(offsets.weight[pairs].clone())
            offsets.bias.copy_(offsets.bias[pairs].clone())

    return plant


@pytest.mark.parametrize(
    "plant",
    [
        _identity("fusion_layer.layer_norm_vision"),
        _identity("fusion_layer.layer_norm_text"),
        _exchange("fusion_layer.vision_param", "fusion_layer.text_param"),
        _exchange("fusion_layer.attn.vision_proj", "fusion_layer.attn.values_vision_proj"),
        _exchange("fusion_layer.attn.out_vision_proj", "fusion_layer.attn.out_text_proj"),
        _exchange("text_enhancer_layer.layer_norm_before", "text_enhancer_layer.layer_norm_after"),
        _identity("deformable_layer.final_layer_norm"),
        _turn_offsets("deformable_layer.self_attn"),
    ],
    ids=["ln vision", "ln text", "gammas", "query/value", "outputs", "order", "ln", "x and y"],
)
def test_a_planted_fault_in_the_encoder_layer_shows(
    pair: Pair, plant: Callable[[nn.Module], None]
) -> None:
    plant(pair[0].model.encoder.layers[1])
    vision, text, their_vision, their_text = encoder_outputs(pair)
    worst = max(float((vision - their_vision).abs().max()), float((text - their_text).abs().max()))
    assert worst > 1e-2


@pytest.mark.parametrize(
    "plant",
    [
        _exchange("self_attn", "encoder_attn_text"),
        _exchange("self_attn_layer_norm", "encoder_attn_layer_norm"),
        _identity("encoder_attn_text_layer_norm"),
        _turn_offsets("encoder_attn"),
    ],
    ids=["attentions", "norms", "ln text", "x and y"],
)
def test_a_planted_fault_in_the_decoder_layer_shows(
    pair: Pair, plant: Callable[[nn.Module], None]
) -> None:
    plant(pair[0].model.decoder.layers[1])
    found, expected = decoder_outputs(pair)
    assert float((found - expected).abs().max()) > 1e-2


@torch.no_grad()
def test_padded_pixels_do_not_reach_valid_outputs() -> None:
    at = level()
    keep = at.mask.bool()
    assert 0 < int(keep.sum()) < GEOMETRY.size
    vision, text = noise(1, GEOMETRY.size, DIM), noise(1, TEXTS, DIM, seed=1)
    positions = noise(GEOMETRY.size, DIM, seed=2)
    other = vision.clone()
    other[:, ~keep] = noise(1, int((~keep).sum()), DIM, seed=9) * 100
    encoder = EncoderLayer(CONFIG).eval()
    randomise(encoder)
    one = encoder(vision, text, positions, at, GEOMETRY)
    two = encoder(other, text, positions, at, GEOMETRY)
    assert torch.equal(one[0][:, keep], two[0][:, keep])
    assert torch.equal(one[1], two[1])
    decoder = DecoderLayer(CONFIG).eval()
    randomise(decoder)
    x, query_positions = noise(1, QUERIES, DIM, seed=3), noise(1, QUERIES, DIM, seed=4)
    boxes = noise(1, QUERIES, 4, seed=5).sigmoid()[:, :, None] * at.valid_ratios.repeat(1, 2)
    results = [
        decoder(x, query_positions, boxes, memory, text, at.mask, GEOMETRY)
        for memory in (vision, other)
    ]
    assert torch.equal(*results)
    # It is the mask that does it.
    everything = torch.ones_like(at.mask)
    results = [
        decoder(x, query_positions, boxes, memory, text, everything, GEOMETRY)
        for memory in (vision, other)
    ]
    assert not torch.equal(*results)


@torch.no_grad()
def test_attention_is_torch_multi_head_attention() -> None:
    ours = Attention(24, 3)
    randomise(ours)
    theirs = nn.MultiheadAttention(24, 3, batch_first=True).eval()
    theirs.load_state_dict(ours.state_dict())
    q, k, v = noise(2, 4, 24), noise(2, 6, 24, seed=1), noise(2, 6, 24, seed=2)
    torch.testing.assert_close(ours(q, k, v), theirs(q, k, v)[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_mlp_has_relu_between_layers_only() -> None:
    mlp = MLP(4, 6, 5, 3)
    randomise(mlp)
    x = noise(7, 4)
    for i, layer in enumerate(mlp.layers):
        x = x @ layer.weight.T + layer.bias
        x = x.clamp(min=0) if i < 2 else x
    torch.testing.assert_close(mlp(noise(7, 4)), x)
    assert bool((x < 0).any())


def test_first_offsets_point_each_head_its_own_way() -> None:
    # Eight heads on the corners and edges of a square, point p at distance p + 1.
    attention = detector_layers.DeformableAttention(16, 8, levels=2, points=3)
    bias = attention.sampling_offsets.bias.detach().view(8, 2, 3, 2)
    ways = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, way in enumerate(ways):
        for lvl in range(2):
            for point in range(3):
                expected = torch.tensor(way, dtype=torch.float32) * (point + 1)
                torch.testing.assert_close(bias[head, lvl, point], expected, atol=1e-5, rtol=0)
    assert not attention.sampling_offsets.weight.any()
