"""Turns about regions, pose, pictures: ids, who sees whom, what is learned from them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.export.components.weights import randomise
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages import STAGES
from visionllm_edge.export.tiny import exchanges
from visionllm_edge.export.tiny.batches import Batch, Mix, batches
from visionllm_edge.export.tiny.speaker import KINDS, Said, Speaker
from visionllm_edge.export.tiny.trainer import Trainer, hidden_states, look, region_rows
from visionllm_edge.runtime import prompts
from visionllm_edge.runtime import shapes_world as world
from visionllm_edge.runtime.prompts import Control
from visionllm_edge.runtime.tokenizer import Tokenizer

ALL = Mix(questions=1, regions=2, rare=(1.0,) * 6, conversations=0.3)
ROWS = 3


@pytest.fixture(scope="module")
def made(config: VisionLLMConfig, tokenizer: Tokenizer) -> list[Batch]:
    return list(itertools.islice(batches(config, tokenizer, batch=ROWS, seed=9, mix=ALL), 3))


@pytest.fixture(scope="module")
def model(config: VisionLLMConfig) -> VisionLLM:
    out = VisionLLM(config).eval().requires_grad_(False)
    randomise(out)
    return out


def all_said(rng: np.random.Generator) -> list[Said]:
    scene = world.make_scene(rng, min_items=3)
    return [
        exchanges.describe(scene, 1, rng),
        exchanges.classify(scene, 2, rng),
        exchanges.interactive(scene, [2, 0, 1], rng),
        exchanges.grounded_caption(scene, rng),
        exchanges.pose(rng),
        exchanges.generate(rng, alone=True),
        exchanges.edit(scene, rng),
    ]


def test_a_turn_has_the_ids_that_the_runtime_sends(
    config: VisionLLMConfig, tokenizer: Tokenizer
) -> None:
    speaker, rng = Speaker(tokenizer, config), np.random.default_rng(3)
    markers = {tokenizer.control_id(f"[EMB{i}]" if i else "[EMB]") for i in (0, 2, 3, 4)}
    for said in [one for _ in range(3) for one in all_said(rng)]:
        turn = speaker.turn(said, first=True)
        found = [token for token in turn.ids if token not in markers]
        whole = prompts.conversation(
            [prompts.Turn(said.question, said.answer)], image=not said.alone
        )
        tokens = config.vision.tokens_per_tile
        expected = tokenizer.encode(whole, image_tokens=tokens)
        assert ([] if said.alone else speaker.prefix) + found == expected
        routing = [s.name for s in said.answer if isinstance(s, Control) and s.name[0] == "["]
        assert [len(group.rows) for group in turn.groups] == [
            64 if name in ("[GEN]", "[EDIT]") else 4 for name in routing
        ]
        for group in turn.groups:
            assert {turn.ids[row] for row in group.rows} <= markers
            assert turn.targets[group.rows[-1]] == turn.ids[group.rows[-1] + 1]
        assert len(turn.slots) == len(turn.regions) == len(said.regions)


def test_regions_stand_where_their_tokens_are(made: list[Batch], tokenizer: Tokenizer) -> None:
    token = tokenizer.control_id("<region>")
    for batch in made:
        regions = batch.regions
        assert regions is not None
        assert bool((batch.ids[regions.rows, regions.places] == token).all())
        assert int((batch.ids == token).sum()) == len(regions.masks)
        assert bool(((regions.masks == 0) | (regions.masks == 1)).all())
        assert bool((regions.masks.flatten(1).sum(1) > 0).all())
        # The mask lies about where the item is.
        side = regions.masks.shape[-1]
        for mask, box in zip(regions.masks[:, 0], regions.boxes, strict=True):
            y, x = mask.nonzero().float().mean(0) / side
            assert float((x - box[0]).abs()) <= float(box[2]) * 0.6
            assert float((y - box[1]).abs()) <= float(box[3]) * 0.6


@torch.no_grad()
def test_a_region_answers_about_its_own_item(made: list[Batch], tokenizer: Tokenizer) -> None:
    """The description behind a region names the item that the mask was made for."""
    seen = 0
    for batch in made:
        assert batch.regions is not None
        for row, place, name in zip(
            batch.regions.rows, batch.regions.places, batch.regions.names, strict=True
        ):
            rest = tokenizer.decode(batch.ids[row, place:].tolist()).partition("</s>")[0]
            answer = rest.partition("ASSISTANT: ")[2]
            if answer.startswith(("a ", "an ")) and "[DET]" not in answer:
                shape, color = world.SHAPES[name[0]], world.COLORS[name[1] - 1]
                assert answer == world.indefinite(f"{color} {shape}")
                seen += 1
    assert seen > 10


@torch.no_grad()
def test_rows_of_regions_are_those_of_the_stage(made: list[Batch], model: VisionLLM) -> None:
    batch = made[0]
    regions = batch.regions
    assert regions is not None
    before, states = look(model, batch.tiles)
    rows = region_rows(model, batch.tiles, regions, before, states)
    stage = next(stage for stage in STAGES if stage.name == "region_encoder")
    module = stage.module(model, None)
    for b in range(ROWS):
        own = regions.rows == b
        one = slice(b, b + 1)
        expected = module(batch.tiles[one], regions.masks[own], before[one, 1:], states[one])
        torch.testing.assert_close(rows[own], expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_turns_do_not_see_each_other(made: list[Batch], model: VisionLLM) -> None:
    """Change one unlinked turn's words: the states of all others stay."""
    batch = made[0]
    row = int((~batch.linked).nonzero()[0])
    image = model.image_tokens(batch.tiles)
    before = hidden_states(model, batch, image)
    ends = (batch.ids[row] == 2).nonzero()[:, 0].tolist()
    changed = batch.ids.clone()
    changed[row, ends[1] + 2 : ends[2] - 1] = 300
    object.__setattr__(batch, "ids", changed)
    after = hidden_states(model, batch, image)
    same = (before[row] - after[row]).abs().amax(-1) < 1e-5
    assert not bool(same[ends[1] + 2 : ends[2] - 1].any())
    assert bool(same[: ends[1] + 1].all())
    assert bool(same[ends[2] + 1 : ends[-1] + 1].all())


def test_turns_that_stand_alone_see_no_picture(made: list[Batch], tokenizer: Tokenizer) -> None:
    trigger = tokenizer.control_id("[GEN]")
    alone = 0
    for batch in made:
        for row in range(ROWS):
            at = int((batch.ids[row] == trigger).nonzero()[0])
            sees = batch.mask[row, 0, at].nonzero()[:, 0]
            if not bool(batch.linked[row]):
                alone += 1
                assert int(batch.ids[row, sees[0]]) == tokenizer.bos
                assert int(batch.positions[row, sees[0]]) == 0
                assert int(sees[0]) > 0
                assert sees.tolist() == list(range(int(sees[0]), at + 1))
            else:
                assert sees.tolist() == list(range(at + 1))
    assert alone


def test_every_new_loss_is_there_and_teaches(config: VisionLLMConfig, made: list[Batch]) -> None:
    torch.manual_seed(0)
    trainer = Trainer(config)
    start = VisionLLM(config).eval().requires_grad_(False)
    trainer.start.append(start)
    trainer.texts.normal_()
    losses = trainer.losses(made[2], "language", 0)
    assert {"region", "grounded", "route", "marked", "marked_place", "text", "place"} <= set(losses)
    assert {"heard_pose", "heard_gen", "heard_edit", "pointed", "pointed_name"} <= set(losses)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    model = trainer.model
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name in (
        "region_encoder.up_dim.weight",
        "region_encoder.mask_embedding.0.weight",
        "vl_bridge.0.weight",
        "emb_embeddings_gen.weight",
        "vis_encoder.vision_model.encoder.layers.4.mlp.fc1.weight",
    ):
        gradient = gradients[name]
        assert gradient is not None, name
        assert float(gradient.abs().sum()) > 0, name
    # What finds objects today, and what sees, is left as it is.
    assert all(grad is None for name, grad in gradients.items() if name.startswith("gdino."))
    assert gradients["vis_encoder.vision_model.encoder.layers.3.mlp.fc1.weight"] is None


@pytest.mark.parametrize("sort", ["pointing", "phrases"])
def test_the_detector_is_asked_what_the_turn_says(
    config: VisionLLMConfig, tokenizer: Tokenizer, sort: str
) -> None:
    mix = Mix(
        questions=0,
        captions=False,
        conversations=0.0,
        pointing=float(sort == "pointing"),
        phrases=float(sort == "phrases"),
    )
    for batch in itertools.islice(batches(config, tokenizer, batch=2, seed=4, mix=mix), 4):
        assert batch.sort == sort
        assert batch.head == batch.ids.shape[1]
        links = batch.links["det"]
        count = batch.groups.shape[1]
        for b, truth in enumerate(batch.truth):
            assert truth.classes.shape[1] == count
            boxes = links.boxes.view(2, count, 4)[b]
            for t in range(count):
                meant = truth.boxes[truth.classes[:, t] > 0]
                assert float((meant - boxes[t]).abs().sum(-1).min()) < 1e-5
                if sort == "pointing":
                    assert len(meant) == 1
        assert len(KINDS) == 6


def test_long_rows_are_cut_at_turns(config: VisionLLMConfig, tokenizer: Tokenizer) -> None:
    mix = Mix(questions=4, regions=4, rare=(1.0,) * 6, length=420)
    some = list(itertools.islice(batches(config, tokenizer, batch=4, seed=1, mix=mix), 3))
    assert all(batch.ids.shape[1] <= 430 for batch in some)
    assert sum(batch.ids.shape[1] > 380 for batch in some) >= 2
