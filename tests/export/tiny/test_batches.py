"""Training batches: who sees whom, what is learned, and that it is what the runtime will say."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from tests.export.components.weights import randomise
from visionllm_edge.export.components.llm_decoder import Llama
from visionllm_edge.export.config import LlmConfig, VisionLLMConfig
from visionllm_edge.export.tiny.batches import KINDS, Batch, batches
from visionllm_edge.runtime import prompts
from visionllm_edge.runtime import shapes_world as world
from visionllm_edge.runtime.prompts import Control, Segment, Text
from visionllm_edge.runtime.tokenizer import Tokenizer

COUNT, ROWS = 8, 4
MARKERS = ("[EMB]", "[EMB2]", "[EMB3]", "[EMB4]")
ROUTING = ("[DET]", "[SEG]", "[GRD]")


@pytest.fixture(scope="module")
def made(config: VisionLLMConfig, tokenizer: Tokenizer) -> list[Batch]:
    return list(itertools.islice(batches(config, tokenizer, batch=ROWS, seed=3), COUNT))


@dataclasses.dataclass
class Row:
    """One row of a batch, cut into its parts."""

    ids: list[int]
    targets: list[int]
    kinds: list[int]
    prefix: int
    turns: list[slice]
    linked: bool
    groups: Tensor
    mask: Tensor
    positions: list[int]


def rows_of(batch: Batch, tokenizer: Tokenizer) -> list[Row]:
    """Cut rows at what separates turns: ``</s>`` ends each of them."""
    out = []
    for b in range(len(batch.ids)):
        ids = batch.ids[b].tolist()
        used = max(i for i, token in enumerate(ids) if token) + 1
        prefix = max(i for i, t in enumerate(ids) if t == tokenizer.control_id("<im_patch>")) + 1
        ends = [i + 1 for i, token in enumerate(ids) if token == tokenizer.eos]
        assert ends[-1] == used
        starts = [prefix, *ends[:-1]]
        positions = batch.positions[b].tolist()
        out.append(
            Row(
                ids=ids,
                targets=batch.targets[b].tolist(),
                kinds=batch.kind[b].tolist(),
                prefix=prefix,
                turns=[slice(a, z) for a, z in zip(starts, ends, strict=True)],
                linked=positions[ends[0]] != prefix,
                groups=batch.groups[b],
                mask=batch.mask[b, 0],
                positions=positions,
            )
        )
    return out


@pytest.fixture(scope="module")
def rows(made: list[Batch], tokenizer: Tokenizer) -> list[Row]:
    found = [row for batch in made for row in rows_of(batch, tokenizer)]
    assert {row.linked for row in found} == {True, False}
    assert all(len(row.turns) >= 3 for row in found)
    return found


def test_shapes(made: list[Batch], config: VisionLLMConfig) -> None:
    side, tokens = config.vision.image_size, config.vision.tokens_per_tile
    for batch in made:
        height, width = batch.size
        length, classes = batch.ids.shape[1], batch.groups.shape[1]
        assert batch.pixels.shape == (ROWS, 3, height, width)
        assert batch.tiles.shape == (ROWS, 3, side, side)
        assert batch.mask.shape == (ROWS, 1, length, length)
        assert batch.groups.shape == (ROWS, classes, config.num_embs)
        assert batch.patch_labels.shape == (ROWS, tokens, 12)
        assert batch.cell_labels.shape == (ROWS, 12, height // 8, width // 8)
        assert len(batch.truth) == ROWS
        assert int(batch.ids.max()) < config.llm.vocab_size
        assert int(batch.positions.max()) < config.llm.max_position_embeddings
        assert (height, width) in config.deployment.det_buckets or height % 32 == width % 32 == 0


def test_mask_lets_a_turn_see_the_prefix_and_itself(rows: list[Row]) -> None:
    for row in rows:
        expected = torch.zeros_like(row.mask)
        for i in range(row.prefix):
            expected[i, : i + 1] = True
        for turn in row.turns:
            for i in range(turn.start, turn.stop):
                expected[i, : row.prefix] = True
                expected[i, 0 if row.linked else turn.start : i + 1] = True
        used = row.turns[-1].stop
        assert torch.equal(row.mask[:used], expected[:used])
        # A padding row sees something, or its softmax would be empty.
        assert bool(row.mask[used:].any(-1).all())
        assert not bool(row.mask[:used, used:].any())


def test_positions_are_those_of_the_first_turn_or_of_the_conversation(rows: list[Row]) -> None:
    for row in rows:
        assert row.positions[: row.prefix] == list(range(row.prefix))
        for turn in row.turns:
            start = turn.start if row.linked else row.prefix
            expected = list(range(start, start + turn.stop - turn.start))
            assert row.positions[turn] == expected


@torch.no_grad()
def test_a_turn_is_what_it_would_be_alone(made: list[Batch], rows: list[Row]) -> None:
    """Run a network: nothing leaks between unlinked turns, whatever mask and positions are."""
    llama = Llama(LlmConfig(1000, 32, 32, 2, 2, 2, 1e-5, 10000.0, 1024)).eval()
    randomise(llama)
    for i, at in itertools.product(range(3), range(ROWS)):
        batch, row = made[i], rows[i * ROWS + at]
        embeds = llama.model.embed_tokens(batch.ids[at : at + 1])
        hidden = llama.teacher_forced(
            embeds, mask=batch.mask[at : at + 1], positions=batch.positions[at : at + 1]
        )
        assert bool(hidden.isfinite().all())
        for turn in row.turns:
            before = embeds[:, : turn.start if row.linked else row.prefix]
            alone = llama.teacher_forced(torch.cat([before, embeds[:, turn]], dim=1))
            torch.testing.assert_close(
                hidden[:, turn], alone[:, before.shape[1] :], atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("leak", ["mask", "positions"])
@torch.no_grad()
def test_a_leak_would_show(made: list[Batch], rows: list[Row], leak: str) -> None:
    """A plain causal mask, or running positions, change what a later turn is."""
    llama = Llama(LlmConfig(1000, 32, 32, 2, 2, 2, 1e-5, 10000.0, 1024)).eval()
    randomise(llama)
    number, row = next((i, row) for i, row in enumerate(rows) if not row.linked)
    batch, at = made[number // ROWS], slice(number % ROWS, number % ROWS + 1)
    mask, positions = batch.mask[at], batch.positions[at]
    length = mask.shape[-1]
    embeds = llama.model.embed_tokens(batch.ids[at])
    right = llama.teacher_forced(embeds, mask=mask, positions=positions)
    if leak == "mask":
        mask = torch.ones_like(mask).tril()
    else:
        positions = torch.arange(length)[None]
    wrong = llama.teacher_forced(embeds, mask=mask, positions=positions)
    first, last = row.turns[0], row.turns[-1]
    torch.testing.assert_close(wrong[:, first], right[:, first], atol=1e-4, rtol=1e-4)
    assert float((wrong[:, last] - right[:, last]).abs().max()) > 1e-2


def test_targets_are_the_answers_and_nothing_else(rows: list[Row], tokenizer: Tokenizer) -> None:
    markers = {tokenizer.control_id(name) for name in MARKERS}
    routing = {tokenizer.control_id(name) for name in ROUTING}
    for row in rows:
        assert set(row.targets[: row.prefix]) == {-100}
        assert set(row.targets[row.turns[-1].stop :]) <= {-100}
        for turn in row.turns:
            ids, targets = row.ids[turn], row.targets[turn]
            learned = [i for i, target in enumerate(targets) if target != -100]
            assert all(targets[i] == ids[i + 1] for i in learned)
            assert not markers & {targets[i] for i in learned}
            # From the first answer token to </s>, without a gap but the markers.
            first = learned[0] + 1
            assert tokenizer.decode(ids[:first]).endswith("ASSISTANT:")
            answer = ids[first:]
            assert [targets[i] for i in learned] == [t for t in answer if t not in markers]
            assert answer[-1] == tokenizer.eos
            for i, token in enumerate(ids):
                if token in routing:
                    assert targets[i] == -100  # the next token comes from the last marker
                    assert all(targets[i + k] == -100 for k in (1, 2, 3))
                    assert targets[i + 4] == ids[i + 5]


def test_groups_are_the_rows_behind_each_routing_token(
    made: list[Batch], rows: list[Row], tokenizer: Tokenizer
) -> None:
    markers = [tokenizer.control_id(name) for name in MARKERS]
    routing = {tokenizer.control_id(name) for name in ROUTING}
    seen = set()
    for row in rows:
        ids = torch.tensor(row.ids)
        where = [i for i, token in enumerate(row.ids) if token in routing]
        assert row.groups.tolist() == [[i + 1, i + 2, i + 3, i + 4] for i in where]
        assert ids[row.groups].tolist() == [markers] * len(where)
        seen |= {row.ids[i] for i in where}
        # Marker ids stand nowhere else.
        assert sum(token in markers for token in row.ids) == 4 * len(where)
    assert seen == routing


def test_kinds_of_turns(rows: list[Row], tokenizer: Tokenizer) -> None:
    routing = {tokenizer.control_id(name) for name in ROUTING}
    for row in rows:
        kinds = []
        for turn in row.turns:
            kind = set(row.kinds[turn])
            assert len(kind) == 1
            kinds += [KINDS[k] for k in kind]
            assert (kinds[-1] == "detect") == bool(routing & set(row.ids[turn]))
        assert kinds.count("detect") == kinds.count("caption") == 1
        assert kinds.count("vqa") == len(kinds) - 2 >= 1


def test_classes_of_the_truth_are_those_in_the_answer(
    made: list[Batch], rows: list[Row], tokenizer: Tokenizer
) -> None:
    """What stands before a routing token in the answer is the class of that column."""
    shapes = {name for row in rows for name in names_in_answer(row, tokenizer)}
    assert len(shapes) > 5
    for number, row in enumerate(rows):
        named = names_in_answer(row, tokenizer)
        batch, at = made[number // ROWS], number % ROWS
        if named:
            meant = [
                (world.SHAPES.index(name.split()[-1]), len(name.split()) > 1) for name in named
            ]
            assert [(s, c > 0) for s, c in batch.names[at].tolist()] == meant
        truth = batch.truth[at]
        assert truth.classes.shape == (len(truth.boxes), batch.groups.shape[1])


def names_in_answer(row: Row, tokenizer: Tokenizer) -> list[str]:
    """Class names of a scripted answer; empty for grounding, whose answer repeats nothing."""
    routing = {tokenizer.control_id(name) for name in ("[DET]", "[SEG]")}
    for turn in row.turns:
        ids = row.ids[turn]
        if routing & set(ids):
            text = tokenizer.decode([t for t in ids if t not in row_markers(tokenizer)])
            answer = text.split("ASSISTANT:")[1].partition("results for ")[2]
            pieces = answer.replace("[SEG]", "[DET]").split("[DET]")[:-1]
            return [piece.strip(" ,") for piece in pieces]
    return []


def row_markers(tokenizer: Tokenizer) -> set[int]:
    return {tokenizer.control_id(name) for name in MARKERS}


def test_truth_boxes_fit_their_masks(made: list[Batch]) -> None:
    objects = 0
    for batch in made:
        height, width = batch.size
        for truth in batch.truth:
            for box, classes, mask in zip(truth.boxes, truth.classes, truth.masks, strict=True):
                objects += 1
                assert mask.shape == (height, width)
                assert set(mask.unique().tolist()) <= {0.0, 1.0}
                assert bool(classes.any())
                y, x = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
                x0, x1 = float(x[0]) / width, float(x[-1] + 1) / width
                y0, y1 = float(y[0]) / height, float(y[-1] + 1) / height
                expected = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
                torch.testing.assert_close(box, expected, atol=1e-6, rtol=0)
    assert objects > 10


def test_a_seed_gives_the_same_batches(
    made: list[Batch], config: VisionLLMConfig, tokenizer: Tokenizer
) -> None:
    again = next(iter(batches(config, tokenizer, batch=ROWS, seed=3)))
    other = next(iter(batches(config, tokenizer, batch=ROWS, seed=4)))
    assert torch.equal(again.ids, made[0].ids)
    assert torch.equal(again.pixels, made[0].pixels)
    assert again.pixels.shape != other.pixels.shape or not torch.equal(again.pixels, other.pixels)


def test_conversations_are_what_the_runtime_would_send(
    rows: list[Row], config: VisionLLMConfig, tokenizer: Tokenizer
) -> None:
    """The ids of a conversation are those of its segments encoded in one go."""
    checked = 0
    for row in rows:
        if not row.linked:
            continue
        turns = []
        for turn in row.turns:
            text = tokenizer.decode(t for t in row.ids[turn] if t not in row_markers(tokenizer))
            question, _, answer = text.removesuffix("</s>").partition(" ASSISTANT:")
            question = question.partition("USER:")[2] if "USER:" in question else question
            turns.append(prompts.Turn(question.strip(), segments(answer.strip())))
        whole = prompts.conversation(turns, image=True, template=config.deployment.template)
        expected = tokenizer.encode(whole, image_tokens=config.vision.tokens_per_tile)
        found = [t for t in row.ids if t and t not in row_markers(tokenizer)]
        assert found == expected
        checked += 1
    assert checked


def segments(answer: str) -> tuple[Segment, ...]:
    """Text and controls of an answer as it reads."""
    out: list[Segment] = []
    while answer:
        places = {answer.find(name): name for name in ROUTING if name in answer}
        if not places:
            out.append(Text(answer))
            break
        at = min(places)
        out += [Text(answer[:at]), Control(places[at])]
        answer = answer[at + len(places[at]) :]
    return tuple(part for part in out if part != Text(""))
