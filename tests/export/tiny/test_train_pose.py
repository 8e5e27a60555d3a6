"""Training of the keypoint decoder: its data, its losses, and that a few steps teach something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from visionllm_edge.export.components.geometry import Geometry
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.components.pose_decoder import PoseOutput
from visionllm_edge.export.tiny.frozen_model import frozen_model, frozen_tokenizer
from visionllm_edge.export.tiny.pose_batches import (
    NAMES,
    PoseBatch,
    PoseTruth,
    pose_batches,
    say,
)
from visionllm_edge.export.tiny.pose_losses import box_overlap, dense_loss, keypoint_losses
from visionllm_edge.export.tiny.pose_scores import right_keypoints
from visionllm_edge.export.tiny.train_pose import PoseTrainer
from visionllm_edge.runtime.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> VisionLLM:
    return frozen_model(tiny_checkpoint)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return frozen_tokenizer(tiny_checkpoint)


@pytest.fixture(scope="module")
def batch(model: VisionLLM, tokenizer: Tokenizer) -> PoseBatch:
    return next(pose_batches(model.config, tokenizer, batch=2, spoken_to=1, seed=3))


def one_person() -> PoseTruth:
    """A person in the middle third of a 120x120 picture, keypoints on a grid inside."""
    points = torch.stack([torch.linspace(0.35, 0.65, 17), torch.linspace(0.35, 0.65, 17)], -1)
    return PoseTruth(
        boxes=torch.tensor([[0.5, 0.5, 0.3, 0.3]]),
        classes=torch.ones(1, 1),
        keypoints=torch.cat([points, torch.full((17, 1), 2.0)], -1)[None],
        everyone=points[None],
        everywhere=torch.tensor([[0.35, 0.35, 0.65, 0.65]]),
    )


def test_groups_stand_behind_their_names(model: VisionLLM, tokenizer: Tokenizer) -> None:
    spoken = say(tokenizer, model.config, ["person", "star"], ["nose", "left eye", "left ear"])
    ids = spoken.ids.tolist()
    routing = [ids[rows[0] - 1] for rows in [*spoken.objects.tolist(), *spoken.keypoints.tolist()]]
    det, pose = tokenizer.control_id("[DET]"), tokenizer.control_id("[POSE]")
    assert routing == [det, det, pose, pose, pose]
    assert ids[spoken.image_start] == tokenizer.control_id("<im_patch>")
    markers = [tokenizer.control_id(n) for n in ("[EMB]", "[EMB2]", "[EMB3]", "[EMB4]")]
    assert [ids[i] for i in spoken.keypoints[2].tolist()] == markers


def test_keypoints_of_a_batch_are_inside_their_people(batch: PoseBatch) -> None:
    for truth in batch.truth:
        assert len(truth.everyone) >= 1
        low, high = truth.everywhere[:, None, :2], truth.everywhere[:, None, 2:]
        inside = ((truth.everyone > low - 0.2) & (truth.everyone < high + 0.2)).all(-1)
        assert inside.all(), "a person may hide a limb, but is not elsewhere"
        assert truth.keypoints.shape[1:] == (len(batch.chosen), 3)
    assert batch.pixels.shape == (2, 3, *batch.size)
    assert len(batch.tiles) == 1


def test_right_predictions_cost_nothing() -> None:
    truth = one_person()
    points = truth.keypoints[..., :2][:, None]
    logits = torch.full((1, 1, 1), 12.0)
    right = PoseOutput(logits, truth.boxes[:, None], points)
    losses = keypoint_losses(truth.boxes[:, None], [right, right], (truth,), (120, 120))
    assert all(float(value) < 1e-4 for value in losses.values()), losses
    moved = PoseOutput(logits, truth.boxes[:, None], points + torch.tensor([0.03, 0.0]))
    losses = keypoint_losses(truth.boxes[:, None], [right, moved], (truth,), (120, 120))
    assert float(losses["point"]) == pytest.approx(0.1), "a tenth of the person's side"
    assert float(losses["start"]) == pytest.approx(0)


def test_instances_elsewhere_do_not_learn_the_keypoints() -> None:
    truth = one_person()
    elsewhere = torch.tensor([[[0.2, 0.2, 0.3, 0.3]]])
    found = PoseOutput(torch.zeros(1, 1, 1), elsewhere, torch.zeros(1, 1, 17, 2))
    assert "point" not in keypoint_losses(elsewhere, [found, found], (truth,), (120, 120))


def test_pixels_of_a_person_point_at_its_keypoints() -> None:
    truth, geometry = one_person(), Geometry(128, 128)
    centres = geometry.levels(geometry.full_size(), 32, 20.0).reference
    steps = (truth.everyone - centres[:, None]) * 128 / 16
    exact = steps.flatten(1)[None]
    assert float(dense_loss(exact, (truth,), geometry, (128, 128))) < 1e-5
    wrong = dense_loss(exact + 1, (truth,), geometry, (128, 128))
    assert float(wrong) == pytest.approx(2, rel=1e-4)


def test_a_share_of_the_torso_decides_what_is_right() -> None:
    truth = one_person()
    points = truth.keypoints[0, :, :2]
    reach = float((points[5] - points[12]).norm())
    found = points.clone()
    found[3, 0] += 0.19 * reach
    found[4, 0] += 0.21 * reach
    logits, boxes = torch.tensor([0.0, 1.0]), torch.tensor([[0.5, 0.5, 0.3, 0.3], [0.1] * 4])
    both = torch.stack([found, points])
    right, visible = right_keypoints(logits, boxes, both, truth, (120, 120))
    assert int(visible.sum()) == 17
    assert right[0].tolist() == [i != 4 for i in range(17)], "the box elsewhere does not count"


def test_overlap_of_boxes() -> None:
    a = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]])
    b = torch.tensor([[0.6, 0.5, 0.2, 0.2]])
    torch.testing.assert_close(box_overlap(a, b), torch.tensor([[1 / 3], [0.0]]))


def test_a_few_steps_on_one_batch_lower_its_losses(model: VisionLLM, batch: PoseBatch) -> None:
    torch.manual_seed(0)
    trainer = PoseTrainer(model)
    optimizer = torch.optim.AdamW(trainer.parameters(), lr=1e-3)
    noted = []
    for _ in range(6):
        losses = trainer.losses(batch, 0)
        total = torch.stack([losses[name] for name in ("start", "point", "dense", "name")]).sum()
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        noted.append(float(total.detach()))
    assert noted[-1] < 0.8 * noted[0], noted
    assert trainer.emb_embeddings_pose.weight.grad is not None
    assert float(trainer.emb_embeddings_pose.weight.grad.abs().sum()) > 0
    assert all(p.grad is None for p in model.parameters()), "the rest of the model stays as it is"
    assert {len(NAMES)} == {17}


def test_other_names_in_another_order_are_trained(model: VisionLLM, tokenizer: Tokenizer) -> None:
    stream = pose_batches(model.config, tokenizer, batch=1, spoken_to=1, seed=5)
    lists = [tuple(next(stream).chosen.tolist()) for _ in range(24)]
    assert tuple(range(17)) in lists
    assert any(names != tuple(sorted(names)) and len(names) < 17 for names in lists)
    assert len(set(lists)) <= 6, "four batches in a row share a question"
