"""The whole object decoder, from pixels to boxes, against transformers' Grounding DINO."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.export.components.their_detector import CONFIG, texts, their_detector
from tests.export.components.weights import randomise
from visionllm_edge.export.components import object_decoder, queries
from visionllm_edge.export.components.geometry import Geometry, LevelGeometry
from visionllm_edge.export.components.object_decoder import ObjectDecoder
from visionllm_edge.export.config import SwinConfig

Named = dict[str, Tensor]

BUCKET = (96, 160)
VALID_SIZES = [(96, 160), (70, 130), (33, 160)]
TEXTS = 5


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make() -> ObjectDecoder:
    decoder = ObjectDecoder(CONFIG).eval()
    randomise(decoder)
    return decoder


def image(valid: tuple[int, int], bucket: tuple[int, int] = BUCKET) -> Tensor:
    """A picture that is zero outside its valid size."""
    pixels = torch.zeros(1, 3, *bucket)
    pixels[:, :, : valid[0], : valid[1]] = noise(1, 3, *valid)
    return pixels


def states(count: int = TEXTS) -> Tensor:
    return noise(1, count, CONFIG.num_embs, CONFIG.l_hidden_size, seed=1)


@torch.no_grad()
def both(ours: ObjectDecoder, valid: tuple[int, int], fault: str = "") -> tuple[Named, Named]:
    """Named results of our decoder and of theirs."""
    model = their_detector(ours)
    projected = ours.patch2query(states()).mean(dim=2)
    if fault:
        FAULTS[fault](ours)
    pixels, geometry, size = image(valid), Geometry(*BUCKET), torch.tensor(valid)
    map1, map2, map3, map4 = ours.backbone_maps(pixels)
    assert map1.shape == (1, 8, BUCKET[0] // 4, BUCKET[1] // 4)
    memory, text = ours.encode(map2, map3, map4, size, states(), geometry)
    queries, logits, boxes = ours.decode(memory, text, size, geometry)
    pixel_mask = torch.zeros(1, *BUCKET, dtype=torch.long)
    pixel_mask[:, : valid[0], : valid[1]] = 1
    with texts(model, projected) as ids:
        out = model(pixels, ids, pixel_mask=pixel_mask)
    keep = ours.levels(size, geometry).mask.bool()
    found = {
        "memory": memory[:, keep],
        "text": text,
        "queries": queries,
        "logits": logits,
        "boxes": boxes,
    }
    expected = {
        "memory": out.encoder_last_hidden_state_vision[:, keep],
        "text": out.encoder_last_hidden_state_text,
        "queries": out.last_hidden_state,
        "logits": out.logits[..., :TEXTS],
        "boxes": out.pred_boxes,
    }
    return found, expected


@pytest.mark.parametrize("valid", VALID_SIZES, ids=str)
def test_equals_transformers(valid: tuple[int, int]) -> None:
    found, expected = both(make(), valid)
    differences = {name: float((found[name] - v).abs().max()) for name, v in expected.items()}
    assert max(differences.values()) < 5e-4, differences
    # The test would be empty if all boxes were the same, or stuck at the borders.
    assert float(found["boxes"].std(dim=1).min()) > 0.005


def _replace_levels(decoder: ObjectDecoder, **change: object) -> None:
    levels = decoder.levels

    def wrong(valid_size: Tensor, geometry: Geometry) -> LevelGeometry:
        level = levels(valid_size, geometry)
        values = {
            name: getattr(level, name).flip(-1) if value == "flip" else value
            for name, value in change.items()
        }
        return dataclasses.replace(level, **values)  # type: ignore[arg-type]

    decoder.levels = wrong  # type: ignore[method-assign]


def _normed_refinement(decoder: ObjectDecoder) -> None:
    """Boxes refined from the state behind the output norm."""
    head, norm = decoder.bbox_embed[0], decoder.model.decoder.layer_norm
    heads = [nn.Sequential(norm, head) for _ in range(CONFIG.decoder_layers - 1)]
    decoder.bbox_embed = nn.ModuleList([*heads, head])  # type: ignore[assignment]


def _project_after_mean(decoder: ObjectDecoder) -> None:
    head = decoder.patch2query

    class Late(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = head(x.mean(dim=2, keepdim=True))
            return out

    decoder.patch2query = Late()  # type: ignore[assignment]


def _no_level_embedding(decoder: ObjectDecoder) -> None:
    decoder.model.level_embed = nn.Parameter(torch.zeros_like(decoder.model.level_embed))


FAULTS = {
    "reference as (y, x)": lambda d: _replace_levels(d, reference="flip"),
    "ratios as (y, x)": lambda d: _replace_levels(d, valid_ratios="flip"),
    "no ratios": lambda d: _replace_levels(d, valid_ratios=torch.ones(4, 2)),
    "no mask": lambda d: _replace_levels(d, mask=torch.ones(Geometry(*BUCKET).size)),
    "no level embedding": _no_level_embedding,
    "normed refinement": _normed_refinement,
    "projection after the mean": _project_after_mean,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_shows(fault: str) -> None:
    found, expected = both(make(), (70, 130), fault)
    worst = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    assert worst > 5e-3


def test_wrong_order_of_the_box_embedding_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = queries.box_embedding

    def wrong(boxes: Tensor, dim: int) -> Tensor:
        return right(boxes[..., [1, 0, 2, 3]], dim)

    monkeypatch.setattr(object_decoder, "box_embedding", wrong)
    found, expected = both(make(), (70, 130))
    assert float((found["boxes"] - expected["boxes"]).abs().max()) > 5e-3


@torch.no_grad()
def test_texts_are_projected_and_then_averaged() -> None:
    decoder = make()
    rows = states()
    layers = decoder.patch2query.layers

    def project(row: Tensor) -> Tensor:
        for i, layer in enumerate(layers):
            row = layer.weight @ row + layer.bias
            row = row.clamp(min=0) if i < 2 else row
        return row

    expected = torch.stack(
        [sum(project(rows[0, t, n]) for n in range(4)) / 4 for t in range(TEXTS)]  # type: ignore[misc]
    )
    found = decoder.patch2query(rows).mean(dim=2)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# What may depend on padding, and what may not.


@torch.no_grad()
def test_padded_memory_reaches_nothing() -> None:
    decoder, geometry, size = make(), Geometry(*BUCKET), torch.tensor([70, 130])
    keep = decoder.levels(size, geometry).mask.bool()
    memory, text = noise(1, geometry.size, CONFIG.d_model), noise(1, TEXTS, CONFIG.d_model, seed=1)
    other = memory.clone()
    other[:, ~keep] = 1000 * noise(1, int((~keep).sum()), CONFIG.d_model, seed=2)
    for one, two in zip(
        decoder.decode(memory, text, size, geometry),
        decoder.decode(other, text, size, geometry),
        strict=True,
    ):
        assert torch.equal(one, two)
    full = geometry.full_size()
    one, two = (decoder.decode(m, text, full, geometry)[0] for m in (memory, other))
    assert not torch.equal(one, two)


def embedded(flat: Tensor, tight: Geometry, wide: Geometry, fill: Tensor) -> tuple[Tensor, Tensor]:
    """A small pyramid [B,S,d] in the top left corners of a large one, and which rows they are."""
    out, rows = fill.clone(), []
    for (h, w), (_, width), start, at in zip(
        tight.shapes, wide.shapes, tight.starts, wide.starts, strict=True
    ):
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        index = (at + y * width + x).flatten()
        out[:, index] = flat[:, start : start + h * w]
        rows.append(index)
    return out, torch.cat(rows)


@pytest.mark.parametrize(
    ("tight_size", "wide_size"),
    [((64, 96), (128, 128)), ((32, 64), (64, 128)), ((96, 160), (128, 192))],
    ids=str,
)
@torch.no_grad()
def test_the_same_features_in_a_larger_bucket(
    tight_size: tuple[int, int], wide_size: tuple[int, int]
) -> None:
    """Encoder layers and proposals do not see a bucket whose sides are multiples of 64.

    All else does, in the reference too: the backbone's windows and the group norms see padding, the
    decoder's query positions are those of the padded picture, and where a side is an odd multiple
    of 32, the fourth level has a fractional stride and may count one valid pixel more.
    """
    decoder = make()
    tight, wide = Geometry(*tight_size), Geometry(*wide_size)
    size = torch.tensor(tight_size)
    levels = decoder.levels(size, tight), decoder.levels(size, wide)
    vision = noise(1, tight.size, CONFIG.d_model)
    garbage = 50 * noise(1, wide.size, CONFIG.d_model, seed=7)
    padded, rows = embedded(vision, tight, wide, garbage)
    assert levels[1].mask.nonzero().flatten().tolist() == sorted(rows.tolist())
    assert torch.equal(levels[0].positions, levels[1].positions[rows])
    assert torch.equal(levels[0].reference, levels[1].reference[rows])
    assert torch.equal(levels[0].proposals, levels[1].proposals[rows])
    text = noise(1, TEXTS, CONFIG.d_model, seed=1)
    one, two = (vision, text), (padded, text)
    for layer in decoder.model.encoder.layers:
        one = layer(*one, levels[0].positions, levels[0], tight)
        two = layer(*two, levels[1].positions, levels[1], wide)
    torch.testing.assert_close(one[0], two[0][:, rows], atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(one[1], two[1], atol=2e-4, rtol=1e-3)
    found = decoder.propose(*one, levels[0]), decoder.propose(*two, levels[1])
    torch.testing.assert_close(found[0].scores, found[1].scores[:, rows], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        found[0].box_logits, found[1].box_logits[:, rows], atol=1e-3, rtol=1e-3
    )


@torch.no_grad()
def test_batch_rows_are_independent() -> None:
    decoder, geometry = make(), Geometry(*BUCKET)
    memory, text = noise(2, geometry.size, CONFIG.d_model), noise(2, TEXTS, CONFIG.d_model, seed=1)
    size = geometry.full_size()
    whole = decoder.decode(memory, text, size, geometry)
    single = decoder.decode(memory[1:], text[1:], size, geometry)
    for a, b in zip(whole, single, strict=True):
        torch.testing.assert_close(a[1:], b, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_place_of_a_class_in_the_list_is_encoded() -> None:
    decoder, geometry, size = make(), Geometry(*BUCKET), torch.tensor([96, 160])
    _, map2, map3, map4 = decoder.backbone_maps(image((96, 160)))
    order = [2, 0, 1]
    text = decoder.encode(map2, map3, map4, size, states(3), geometry)[1]
    turned = decoder.encode(map2, map3, map4, size, states(3)[:, order], geometry)[1]
    assert text.shape == (1, 3, CONFIG.d_model)
    assert float((turned - text[:, order]).abs().max()) > 1e-3


@torch.no_grad()
def test_queries_are_ordered_by_score_and_unusable_pixels_lie_outside() -> None:
    decoder, geometry, size = make(), Geometry(*BUCKET), torch.tensor([70, 130])
    memory, text = noise(1, geometry.size, CONFIG.d_model), noise(1, TEXTS, CONFIG.d_model, seed=1)
    level = decoder.levels(size, geometry)
    proposals = decoder.propose(memory, text, level)
    best = proposals.scores.amax(-1)[0]
    chosen = best[proposals.top[0]]
    assert proposals.top.shape == (1, CONFIG.num_queries)
    assert torch.equal(chosen, chosen.sort(descending=True).values)
    assert float(chosen.min()) >= float(best.sort(descending=True).values[CONFIG.num_queries - 1])
    unusable = level.proposals_ok == 0
    assert bool(unusable.any())
    assert bool((proposals.box_logits[0, unusable].sigmoid() == 1).all())
    assert not bool((proposals.box_logits[0, ~unusable].sigmoid() == 1).all(-1).any())


@torch.no_grad()
def test_fewer_queries_are_the_best_proposals_with_the_first_rows() -> None:
    whole, count = make(), 12
    fewer = ObjectDecoder(dataclasses.replace(CONFIG, queries=count)).eval()
    fewer.load_state_dict(whole.state_dict())
    # A decoder that never had more rows, which the test against transformers covers.
    small = ObjectDecoder(dataclasses.replace(CONFIG, num_queries=count, queries=0)).eval()
    rows = "model.query_position_embeddings.weight"
    state = dict(whole.state_dict())
    small.load_state_dict(state | {rows: state[rows][:count]})
    geometry, size = Geometry(*BUCKET), torch.tensor([96, 160])
    memory, text = noise(1, geometry.size, CONFIG.d_model), noise(1, TEXTS, CONFIG.d_model, seed=1)
    every, got, expected = (
        decoder.decode(memory, text, size, geometry) for decoder in (whole, fewer, small)
    )
    for name, a, b, c in zip(("queries", "logits", "boxes"), got, expected, every, strict=True):
        assert torch.equal(a, b), name
        # The attention among the queries misses the others: not the beginning of the long answer.
        assert a.shape[1] == count and float((a - c[:, :count]).abs().max()) > 1e-3, name


@torch.no_grad()
def test_every_layer_for_training_ends_with_the_last() -> None:
    decoder, geometry, size = make(), Geometry(*BUCKET), torch.tensor([96, 160])
    memory, text = noise(1, geometry.size, CONFIG.d_model), noise(1, TEXTS, CONFIG.d_model, seed=1)
    level = decoder.levels(size, geometry)
    proposals = decoder.propose(memory, text, level)
    layers = decoder.decode_layers(proposals, memory, text, level, geometry, every=True)
    assert len(layers) == CONFIG.decoder_layers
    queries, logits, boxes = decoder.decode(memory, text, size, geometry)
    assert torch.equal(layers[-1].queries, queries)
    assert torch.equal(layers[-1].logits, logits)
    assert torch.equal(layers[-1].boxes, boxes)
    assert float((layers[0].boxes - boxes).abs().max()) > 1e-2


# Masks.


def bilinear(plane: Tensor, height: int, width: int) -> Tensor:
    """Half-pixel bilinear resize of [C,h,w] as two matrix products, clamped at the borders."""

    def weights(size: int, old: int) -> Tensor:
        out = torch.zeros(size, old)
        for i in range(size):
            at = min(max((i + 0.5) * old / size - 0.5, 0.0), old - 1.0)
            low = math.floor(at)
            out[i, low] += 1 - (at - low)
            out[i, min(low + 1, old - 1)] += at - low
        return out

    return weights(height, plane.shape[1]) @ plane @ weights(width, plane.shape[2]).T


def group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """32 groups of channels of [C,h,w]."""
    groups = x.view(32, -1)
    mean, variance = groups.mean(1, keepdim=True), groups.var(1, keepdim=True, correction=0)
    normed = ((groups - mean) / (variance + 1e-5).sqrt()).view_as(x)
    return normed * norm.weight[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize("bucket", [(96, 160), (416, 608)], ids=str)
@torch.no_grad()
def test_masks(bucket: tuple[int, int]) -> None:
    config = dataclasses.replace(
        CONFIG,
        d_model=64,
        mask_dim=64,
        backbone=SwinConfig(
            embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=7
        ),
    )
    decoder = ObjectDecoder(config).eval()
    randomise(decoder)
    geometry = Geometry(*bucket)
    height, width = bucket[0] // 4, bucket[1] // 4
    map1, memory = noise(1, 8, height, width), noise(1, geometry.size, 64, seed=1)
    queries = noise(1, 3, 64, seed=2)
    found = decoder.masks(map1, memory, queries, geometry)
    assert found.shape == (1, 3, height, width)
    if bucket == (416, 608):
        assert (height, width) == (104, 152)
    model = decoder.model
    h, w = geometry.shapes[0]
    level0 = memory[0, : h * w].T.reshape(64, h, w)
    lateral = model.lateral_convs[0]
    fine = torch.einsum("dc,chw->dhw", lateral.weight[:, :, 0, 0], map1[0])
    mixed = group_norm(fine, lateral.norm) + bilinear(level0, height, width)
    output = model.output_convs[0]
    unfolded = F.unfold(mixed[None], 3, padding=1)[0]
    mixed = (output.weight.flatten(1) @ unfolded).view(64, height, width)
    mixed = group_norm(mixed, output.norm).clamp(min=0)
    features = model.mask_features
    assert features.bias is not None
    pixels = torch.einsum("dc,chw->dhw", features.weight[:, :, 0, 0], mixed)
    pixels = pixels + features.bias[:, None, None]
    embedding = decoder.mask_embed[0](queries[0])
    expected = torch.einsum("kd,dhw->khw", embedding, pixels)
    torch.testing.assert_close(found[0], expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_masks_of_chosen_queries_are_those_of_all() -> None:
    decoder, geometry = make(), Geometry(*BUCKET)
    map1, memory = noise(1, 8, 24, 40), noise(1, geometry.size, CONFIG.d_model, seed=1)
    queries = noise(1, CONFIG.num_queries, CONFIG.d_model, seed=2)
    every = decoder.masks(map1, memory, queries, geometry)
    chosen = [7, 2, 21]
    some = decoder.masks(map1, memory, queries[:, chosen], geometry)
    torch.testing.assert_close(some, every[:, chosen], atol=1e-4, rtol=1e-4)


def test_one_head_serves_all_layers() -> None:
    decoder = make()
    state = decoder.state_dict()
    for i in range(CONFIG.decoder_layers):
        for prefix in ("", "model.decoder."):
            name = f"{prefix}bbox_embed.{i}.layers.2.weight"
            assert state[name].data_ptr() == state["bbox_embed.0.layers.2.weight"].data_ptr()
        assert (
            state[f"mask_embed.{i}.layers.2.weight"].data_ptr()
            == state["mask_embed.0.layers.2.weight"].data_ptr()
        )
