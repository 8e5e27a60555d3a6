"""The keypoint decoder: the object decoder's maths under its own names, and what is its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.export.components.weights import randomise
from tests.export.official_keys import RELEASED, official_keys
from tests.export.small_pose import pose_part, small_pose
from visionllm_edge.export.components import pose_decoder
from visionllm_edge.export.components.detector_layers import Surroundings
from visionllm_edge.export.components.geometry import Geometry, inverse_sigmoid
from visionllm_edge.export.components.object_decoder import ObjectDecoder
from visionllm_edge.export.components.pose_decoder import PoseDecoder, slip_mask
from visionllm_edge.export.config import DetectorConfig
from visionllm_edge.export.config_pose import PoseConfig
from visionllm_edge.export.tiny.pose_initial import from_object_decoder

WIDTH, ROWS = 24, 4
CONFIG = pose_part(small_pose(WIDTH))
GEOMETRY = Geometry(96, 128)
SIZE = torch.tensor([70, 128])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(config: PoseConfig = CONFIG) -> PoseDecoder:
    decoder = PoseDecoder(config).eval().requires_grad_(False)
    randomise(decoder)
    return decoder


def object_decoder(pose: PoseConfig) -> ObjectDecoder:
    """One of the same sizes."""
    config = DetectorConfig(
        backbone=pose.backbone,
        num_queries=pose.num_queries,
        d_model=pose.d_model,
        encoder_layers=pose.encoder_layers,
        decoder_layers=pose.decoder_layers,
        encoder_ffn_dim=pose.ffn_dim,
        decoder_ffn_dim=pose.ffn_dim,
        encoder_attention_heads=pose.heads,
        decoder_attention_heads=pose.heads,
        encoder_n_points=pose.encoder_n_points,
        decoder_n_points=pose.decoder_n_points,
        num_feature_levels=4,
        positional_embedding_temperature=pose.positional_embedding_temperature,
        mask_dim=pose.d_model,
        max_text_len=256,
        l_hidden_size=WIDTH,
        num_embs=ROWS,
    )
    decoder = ObjectDecoder(config).eval().requires_grad_(False)
    randomise(decoder, seed=3)
    return decoder


@dataclasses.dataclass
class Scene:
    memory: Tensor
    text: Tensor
    instances: Tensor
    boxes: Tensor


def scene(decoder: PoseDecoder) -> Scene:
    """Realistic ends of the earlier stages."""
    maps = decoder.backbone_maps(noise(1, 3, 96, 128))
    memory, text = decoder.encode(*maps, SIZE, noise(1, 2, ROWS, WIDTH, seed=1), GEOMETRY)
    return Scene(memory, text, *decoder.instances(memory, text, SIZE, GEOMETRY))


def keypoints(decoder: PoseDecoder, at: Scene, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return decoder.keypoints(at.memory, at.text, at.instances, at.boxes, states, SIZE, GEOMETRY)


def test_released_keys_shapes_and_number_of_weights() -> None:
    with torch.device("meta"):
        decoder = PoseDecoder(pose_part({"l_hidden_size": 4096}))
    found = {name: tuple(t.shape) for name, t in decoder.state_dict().items()}
    official = {
        name.removeprefix("unipose."): shape
        for name, shape in official_keys(RELEASED).items()
        if name.startswith("unipose.")
    }
    assert len(official) == 859
    # The relative position indices are recomputed, and count as no weights.
    recomputed = [name for name in official if name.endswith("relative_position_index")]
    assert found == {name: official[name] for name in official if name not in recomputed}
    assert len(recomputed) == 12
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 65_785_742


def test_boxes_equal_the_object_decoder_with_the_same_weights() -> None:
    """Backbone, encoder, query selection and box layers, through another key layout."""
    theirs, ours = object_decoder(CONFIG), make()
    from_object_decoder(ours, theirs)
    pixels, states = noise(1, 3, 96, 128), noise(1, 3, ROWS, WIDTH, seed=1)
    maps = ours.backbone_maps(pixels)
    _, map2, map3, map4 = theirs.backbone_maps(pixels)
    wanted_maps = map2, map3, map4
    for found, wanted in zip(maps, wanted_maps, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    memory, text = ours.encode(*maps, SIZE, states, GEOMETRY)
    wanted_memory, wanted_text = theirs.encode(*wanted_maps, SIZE, states, GEOMETRY)
    torch.testing.assert_close(memory, wanted_memory, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text, wanted_text, atol=1e-5, rtol=1e-5)
    level = ours.levels(SIZE, GEOMETRY)
    proposals = ours.propose(memory, text, level)
    wanted_proposals = theirs.propose(memory, text, level)
    assert torch.equal(proposals.top, wanted_proposals.top)
    found_boxes = ours.box_layers(proposals, memory, text, level, GEOMETRY)[0]
    first = theirs.decode_layers(wanted_proposals, memory, text, level, GEOMETRY, every=True)[0]
    # Where no box is cut by either epsilon.
    start = torch.gather(proposals.box_logits, 1, proposals.top[..., None].expand(-1, -1, 4))
    inside = ((start.sigmoid() > 1e-3) & (start.sigmoid() < 1 - 1e-3)).all(-1)
    assert int(inside.sum()) >= 5
    torch.testing.assert_close(
        found_boxes.normed_boxes[inside], first.boxes[inside], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(found_boxes.normed_logits, first.logits, atol=1e-4, rtol=1e-5)


def test_instances_are_the_best_of_the_states_before_the_norm() -> None:
    decoder = make()
    at = scene(decoder)
    level = decoder.levels(SIZE, GEOMETRY)
    proposals = decoder.propose(at.memory, at.text, level)
    found = decoder.box_layers(proposals, at.memory, at.text, level, GEOMETRY)[-1]
    plain = found.logits.amax(-1)[0]
    order = sorted(range(len(plain)), key=lambda i: -float(plain[i]))[:4]
    assert torch.equal(at.instances[0], found.queries[0, order])
    assert torch.equal(at.boxes[0], found.boxes[0, order])
    normed = found.normed_logits.amax(-1)[0]
    assert order != sorted(range(len(normed)), key=lambda i: -float(normed[i]))[:4]


def test_keypoints_start_from_the_box_by_their_place_in_the_list() -> None:
    decoder = make()
    names, boxes = noise(1, 19, CONFIG.d_model), torch.tensor([[[0.5, 1e-6, 0.2, 0.4]]])
    contents, places = decoder._tokens(noise(1, 1, CONFIG.d_model, seed=2), boxes, names)
    assert contents.shape == (1, 1, 20, CONFIG.d_model)
    assert torch.equal(contents[0, 0, 1:], names[0])
    assert torch.equal(places[0, 0, 0], boxes[0, 0])
    for k in (0, 16, 17, 18):
        # The epsilon of this decoder is 1e-3: the box's centre is far below it.
        start = torch.tensor([0.5, 1e-3])
        logit = torch.log(start / torch.tensor([0.5, 1.0]))
        wanted = (logit + decoder.pose_embed[0](names[0, k])).sigmoid()
        torch.testing.assert_close(places[0, 0, k + 1, :2], wanted)
        table = decoder.transformer.decoder
        row = table.hw.weight[k] if k < 17 else table.hw_append.weight[k - 17]
        torch.testing.assert_close(
            places[0, 0, k + 1, 2:], row.sigmoid() * torch.tensor([0.2, 0.4])
        )


def test_the_epsilon_is_the_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The object decoder's epsilon would give other boxes for objects at the border."""
    decoder = make()
    at = scene(decoder)
    at.boxes[0, 0] = torch.tensor([2e-4, 0.5, 3e-4, 0.2])
    states = noise(1, 3, ROWS, WIDTH, seed=5)
    used: list[float] = []

    def watched(x: Tensor, eps: float) -> Tensor:
        used.append(eps)
        return inverse_sigmoid(x, eps)

    right = keypoints(decoder, at, states)
    monkeypatch.setattr(pose_decoder, "inverse_sigmoid", watched)
    keypoints(decoder, at, states)
    assert set(used) == {1e-3}
    monkeypatch.setattr(pose_decoder, "_EPS", 1e-5)
    wrong = keypoints(decoder, at, states)
    assert float((right[2] - wrong[2])[0, 0].abs().max()) > 3e-4


@pytest.mark.parametrize("count", [1, 5, 17, 20])
def test_unused_slots_can_be_dropped(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The intended mask over all slots gives what the batched attention gives without them."""

    def intended(instances: int, slots: int, used: int) -> Tensor:
        token = torch.arange(instances * (1 + slots))
        block, real = token // (1 + slots), token % (1 + slots) <= used
        return (block[:, None] == block[None]) & (real[:, None] == real[None])

    decoder = make()
    padded = make(dataclasses.replace(CONFIG, mask_mode="reference68"))
    at, states = scene(decoder), noise(1, count, ROWS, WIDTH, seed=5)
    found = keypoints(decoder, at, states)
    with monkeypatch.context() as patch:
        patch.setattr(pose_decoder, "slip_mask", intended)
        wanted = keypoints(padded, at, states)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=2e-6)
    assert found[2].shape == (1, 4, count, 2)
    # The slip itself gives something else, or the option would do nothing.
    slipped = keypoints(padded, at, states)
    assert float((slipped[2] - found[2]).abs().max()) > 1e-3


@pytest.mark.parametrize("mode", ["block", "reference68"])
def test_more_names_than_slots_are_refused(mode: str) -> None:
    decoder = make(dataclasses.replace(CONFIG, mask_mode=mode))
    states = noise(1, CONFIG.max_keypoints + 1, ROWS, WIDTH, seed=5)
    with pytest.raises(ValueError, match=r"expected 1 to 20 keypoint names, got 21"):
        keypoints(decoder, scene(decoder), states)


def test_every_instance_and_name_counts_for_itself() -> None:
    """Keypoints of one instance do not depend on the others; names are not mixed up."""
    decoder = make()
    at, states = scene(decoder), noise(1, 5, ROWS, WIDTH, seed=5)
    whole = keypoints(decoder, at, states)[2]
    level = decoder.levels(SIZE, GEOMETRY)
    around = Surroundings(at.memory, at.text, level.mask, GEOMETRY)
    names = decoder.projection_kpt_llava(states).mean(dim=2)
    other = at.instances.clone()
    other[:, 1:] = noise(1, 3, CONFIG.d_model, seed=9)
    changed = decoder.keypoint_layers(other, at.boxes, names, around, level)[-1].keypoints
    torch.testing.assert_close(changed[:, 0], whole[:, 0], atol=1e-6, rtol=1e-6)
    assert float((changed[:, 1:] - whole[:, 1:]).abs().max()) > 1e-3


def test_training_sees_the_layer_that_inference_ends_with() -> None:
    decoder = make()
    at, states = scene(decoder), noise(1, 5, ROWS, WIDTH, seed=5)
    level = decoder.levels(SIZE, GEOMETRY)
    around = Surroundings(at.memory, at.text, level.mask, GEOMETRY)
    names = decoder.projection_kpt_llava(states).mean(dim=2)
    every = decoder.keypoint_layers(at.instances, at.boxes, names, around, level, every=True)
    assert len(every) == 1 + CONFIG.decoder_layers - CONFIG.box_layers
    logits, boxes, points = keypoints(decoder, at, states)
    assert torch.equal(every[-1].logits, logits)
    assert torch.equal(every[-1].boxes, boxes)
    assert torch.equal(every[-1].keypoints, points)


def test_the_reference_mask_row_by_row() -> None:
    """The slip as its loop writes it, and its size in the released model."""
    instances, slots, used = 5, 6, 4
    length = instances * (1 + slots)
    wanted = torch.ones(length, length, dtype=torch.bool)
    for row in range(instances * slots):
        start = row // slots * slots
        wanted[row, :start] = False
        if start + slots < instances * slots:
            wanted[row, start + slots :] = False
    for i in range(instances):
        block = slice(i * (1 + slots), (i + 1) * (1 + slots))
        inner = torch.zeros(1 + slots, 1 + slots, dtype=torch.bool)
        inner[: 1 + used, : 1 + used] = inner[1 + used :, 1 + used :] = True
        wanted[block, block] = inner
    assert torch.equal(slip_mask(instances, slots, used), wanted)

    found = slip_mask(50, 68, 17)
    token = torch.arange(50 * 69)
    real = token % 69 <= 17
    intended = (token[:, None] // 69 == token[None] // 69) & (real[:, None] == real[None])
    leaks = found != intended
    assert int(leaks.sum()) == 257_250
    assert int(leaks.any(1).sum()) == 3_382
    assert int((leaks.any(1) & real).sum()) == 882
