"""Losses: nothing to pay for a perfect prediction, and each fault costs where it belongs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from visionllm_edge.export.components.geometry import Geometry
from visionllm_edge.export.components.object_decoder import DecoderOutput, Proposals
from visionllm_edge.export.tiny.batches import Truth
from visionllm_edge.export.tiny.losses import (
    corners,
    decoder_losses,
    focal,
    giou,
    match,
    proposal_losses,
)

SURE = 20.0
HEIGHT, WIDTH, QUERIES, CLASSES, DIM = 64, 96, 6, 3, 4


def rectangle(x0: int, y0: int, x1: int, y1: int) -> tuple[list[float], Tensor]:
    """A box in pixels, sides multiples of 4: cxcywh in 0..1 and its mask."""
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[y0:y1, x0:x1] = 1
    box = [(x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT]
    return box, mask


def truths() -> tuple[Truth, ...]:
    """Three pictures with two, one and no objects; the second has two of the classes."""
    first, second = rectangle(8, 4, 40, 28), rectangle(60, 20, 88, 60)
    third = rectangle(20, 12, 36, 52)
    return (
        Truth(
            torch.tensor([first[0], second[0]]),
            torch.tensor([[1.0, 0, 0], [0, 0, 1]]),
            torch.stack([first[1], second[1]]),
        ),
        Truth(torch.tensor([third[0]]), torch.tensor([[0.0, 1, 1]]), third[1][None]),
        Truth(torch.zeros(0, 4), torch.zeros(0, CLASSES), torch.zeros(0, HEIGHT, WIDTH)),
    )


# Which query holds which object, per picture.
PLACES = ((4, 1), (2,), ())


def perfect() -> tuple[DecoderOutput, Tensor]:
    """Predictions and mask pixels whose channel g is the logit of object g."""
    truth = truths()
    logits = torch.full((3, QUERIES, CLASSES), -SURE)
    boxes = torch.full((3, QUERIES, 4), 0.9)
    queries = torch.zeros(3, QUERIES, DIM)
    pixels = torch.full((3, DIM, HEIGHT // 4, WIDTH // 4), -60.0)
    for b, places in enumerate(PLACES):
        for g, q in enumerate(places):
            logits[b, q] = (truth[b].classes[g] * 2 - 1) * SURE
            boxes[b, q] = truth[b].boxes[g]
            queries[b, q, g] = 1
            pixels[b, g] = (truth[b].masks[g][::4, ::4] * 2 - 1) * 60
    return DecoderOutput(queries, logits, boxes), pixels


def losses(output: DecoderOutput, pixels: Tensor, layers: int = 2) -> dict[str, float]:
    found = decoder_losses([output] * layers, truths(), pixels, nn.Identity())
    return {name: float(value) for name, value in found.items()}


def test_perfect_predictions_cost_nothing() -> None:
    found = losses(*perfect())
    assert set(found) == {"class", "l1", "giou", "dice", "bce"}
    assert max(found[name] for name in ("class", "l1", "giou")) < 1e-3, found
    # Enlarging a mask four times rounds the rectangle's corners off, one pixel each.
    assert max(found[name] for name in ("dice", "bce")) < 0.03, found


def test_objects_find_their_queries() -> None:
    output, _ = perfect()
    pictures, queries, objects = match(output, truths())
    found = {
        (b, q, g)
        for b, q, g in zip(*(t.tolist() for t in (pictures, queries, objects)), strict=True)
    }
    assert found == {(0, 4, 0), (0, 1, 1), (1, 2, 0)}


def wrong(fault: str) -> tuple[DecoderOutput, Tensor]:
    output, pixels = perfect()
    logits, boxes, queries = output.logits.clone(), output.boxes.clone(), output.queries.clone()
    if fault == "missed":
        logits[0, 4] = -SURE
    elif fault == "wrong class":
        logits[0, 4] = logits[0, 4].roll(1)
    elif fault == "one of two classes":
        logits[1, 2, 1] = -SURE
    elif fault == "false alarm":
        logits[2, 0, 0] = SURE
    elif fault == "twice":
        for tensor in (logits, boxes, queries):
            tensor[0, 0] = tensor[0, 4]
    elif fault == "moved":
        boxes[0, 4, 0] += 0.1
    elif fault == "x and y":
        boxes[0, 4] = boxes[0, 4][[1, 0, 3, 2]]
    elif fault == "mask of another":
        pixels = pixels.flip(1).roll(2, dims=1)
    elif fault == "inverted mask":
        pixels = -pixels
    return DecoderOutput(queries, logits, boxes), pixels


@pytest.mark.parametrize(
    ("fault", "terms"),
    [
        ("missed", {"class"}),
        ("wrong class", {"class"}),
        ("one of two classes", {"class"}),
        ("false alarm", {"class"}),
        ("twice", {"class"}),
        ("moved", {"l1", "giou"}),
        ("x and y", {"l1", "giou"}),
        ("mask of another", {"dice", "bce"}),
        ("inverted mask", {"dice", "bce"}),
    ],
)
def test_each_fault_costs_where_it_belongs(fault: str, terms: set[str]) -> None:
    found = losses(*wrong(fault))
    assert {name for name, value in found.items() if value > 0.05} == terms, found


def test_order_of_the_queries_does_not_matter() -> None:
    output, pixels = wrong("moved")
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    turned = DecoderOutput(
        output.queries[:, order], output.logits[:, order], output.boxes[:, order]
    )
    assert losses(turned, pixels) == pytest.approx(losses(output, pixels), abs=1e-6)


def test_layers_add_up() -> None:
    one, three = losses(*wrong("moved"), layers=1), losses(*wrong("moved"), layers=3)
    assert three["l1"] == pytest.approx(3 * one["l1"])


def test_pictures_without_any_object() -> None:
    output, pixels = perfect()
    empty = truths()[2]
    found = decoder_losses([output], (empty,) * 3, pixels, nn.Identity())
    assert float(found["class"]) > 1  # every prediction is a false alarm
    assert all(float(found[name]) == 0 for name in ("l1", "giou", "dice", "bce"))


def test_gradients_reach_everything() -> None:
    output, pixels = wrong("moved")
    unsure = output.logits / 10
    leaves = [t.clone().requires_grad_() for t in (output.queries, unsure, output.boxes)]
    pixels = (pixels / 60).requires_grad_()
    found = decoder_losses([DecoderOutput(*leaves)], truths(), pixels, nn.Identity())
    torch.stack(list(found.values())).sum().backward()  # type: ignore[no-untyped-call]
    for leaf in (*leaves, pixels):
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())
        assert bool(leaf.grad.any())


def test_focal_by_hand() -> None:
    logits, targets = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    p = 1 / (1 + math.exp(-2))
    expected = [
        0.25 * 0.25 * math.log(2),
        0.75 * 0.25 * math.log(2),
        0.25 * (1 - p) ** 2 * -math.log(p),
        0.75 * p**2 * -math.log(1 - p),
    ]
    torch.testing.assert_close(focal(logits, targets), torch.tensor(expected))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([0.0, 0, 1, 1], 1.0),
        ([0.5, 0, 1.5, 1], 1 / 3),
        ([2.0, 0, 3, 1], -1 / 3),
        ([2.0, 2, 3, 3], 0 - (9 - 2) / 9),
        ([0.25, 0.25, 0.75, 0.75], 0.25),
    ],
)
def test_giou_by_hand(other: list[float], expected: float) -> None:
    one = torch.tensor([0.0, 0, 1, 1])
    assert float(giou(one, torch.tensor(other))) == pytest.approx(expected, abs=1e-5)
    assert float(giou(torch.tensor(other), one)) == pytest.approx(expected, abs=1e-5)


def test_corners() -> None:
    box = torch.tensor([0.5, 0.25, 0.2, 0.1])
    torch.testing.assert_close(corners(box), torch.tensor([0.4, 0.2, 0.6, 0.3]))


# Proposals of the first stage.

GEOMETRY = Geometry(HEIGHT, WIDTH)


def proposals(scores: Tensor) -> Proposals:
    """Every pixel gives the box of the picture's first object."""
    boxes = torch.full((3, GEOMETRY.size, 4), 0.5)
    for b, truth in enumerate(truths()):
        if len(truth.boxes):
            boxes[b] = truth.boxes[0]
    top = torch.zeros(3, 1, dtype=torch.int64)
    return Proposals(scores, boxes.logit(), top, boxes.logit()[:, :1])


def positives() -> Tensor:
    """[B,S,T] where the loss wants a higher score."""
    scores = torch.zeros(3, GEOMETRY.size, CLASSES, requires_grad=True)
    proposal_losses(proposals(scores), truths(), GEOMETRY)["enc_class"].backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    return scores.grad < 0


def test_pixels_around_the_centre_are_positive() -> None:
    wanted = positives()
    assert not bool(wanted[2].any())
    for b, truth in enumerate(truths()[:2]):
        for box, classes in zip(truth.boxes, truth.classes, strict=True):
            large = float((box[2] * box[3]).sqrt()) > 0.24
            columns = classes.nonzero().flatten().tolist()
            rows = wanted[b, :, columns[0]].nonzero().flatten().tolist()
            assert 1 <= len(rows) <= 4
            level = int(large)
            h, w = GEOMETRY.shapes[level]
            start = GEOMETRY.starts[level]
            for row in rows:
                assert start <= row < start + h * w
                y, x = divmod(row - start, w)
                assert abs((x + 0.5) / w - float(box[0])) < float(box[2]) / 2
                assert abs((y + 0.5) / h - float(box[1])) < float(box[3]) / 2
                assert wanted[b, row].nonzero().flatten().tolist() == columns


def test_perfect_proposals_cost_nothing() -> None:
    scores = torch.where(positives(), SURE, -SURE)
    alone = (truths()[1], truths()[1], truths()[2])
    given = proposals(scores)
    given = replace(given, scores=scores[[1, 1, 2]], box_logits=given.box_logits[[1, 1, 2]])
    found = {k: float(v) for k, v in proposal_losses(given, alone, GEOMETRY).items()}
    assert set(found) == {"enc_class", "enc_l1", "enc_giou"}
    assert max(found.values()) < 1e-3, found
    moved = given.box_logits.sigmoid() + torch.tensor([0.1, 0, 0, 0])
    worse = replace(given, scores=-given.scores, box_logits=moved.logit())
    found = {k: float(v) for k, v in proposal_losses(worse, alone, GEOMETRY).items()}
    assert min(found.values()) > 0.05, found


def test_proposals_of_empty_pictures() -> None:
    empty = (truths()[2],) * 3
    quiet = proposals(torch.full((3, GEOMETRY.size, CLASSES), -SURE))
    found = proposal_losses(quiet, empty, GEOMETRY)
    assert set(found) == {"enc_class"}
    assert float(found["enc_class"]) < 1e-6
    loud = proposals(torch.full((3, GEOMETRY.size, CLASSES), SURE))
    assert float(proposal_losses(loud, empty, GEOMETRY)["enc_class"]) > 1
