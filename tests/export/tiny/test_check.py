"""The quick checks: what is right counts as right, what is wrong does not."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.tiny import check
from visionllm_edge.export.tiny.batches import Batch, Mix, batches
from visionllm_edge.runtime.tokenizer import Tokenizer

Found = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def some(config: VisionLLMConfig, tokenizer: Tokenizer) -> list[Batch]:
    mix = Mix(questions=1, regions=1, conversations=0.0)
    return list(itertools.islice(batches(config, tokenizer, batch=3, seed=8, mix=mix), 2))


@pytest.fixture(scope="module")
def model(config: VisionLLMConfig) -> VisionLLM:
    return VisionLLM(config).eval().requires_grad_(False)


def found(batch: Batch, *, shift: float = 0.0, swapped: bool = False) -> Found:
    """What a detector would say that knows the truth, with boxes moved or scores turned round."""
    classes = batch.groups.shape[1]
    boxes, logits = torch.zeros(len(batch.truth), 8, 4), torch.full((3, 8, classes), -5.0)
    for b, truth in enumerate(batch.truth):
        count = len(truth.boxes)
        boxes[b, :count] = truth.boxes
        logits[b, :count] = 10 * truth.classes - 5
    boxes[..., :2] += shift * boxes[..., 2:]
    nothing = torch.zeros(0)
    return nothing, -logits if swapped else logits, boxes, nothing, nothing


@pytest.mark.parametrize(
    ("shift", "swapped", "low", "high"),
    # Moved by a tenth each way the boxes' IoU is 0.81 / 1.19 = 0.68: four of the ten thresholds.
    [(0.0, False, 0.999, 1.0), (0.1, False, 0.38, 0.41), (0.6, False, 0.0, 0.05)],
)
def test_box_precision(
    monkeypatch: pytest.MonkeyPatch,
    some: list[Batch],
    model: VisionLLM,
    shift: float,
    swapped: bool,
    low: float,
    high: float,
) -> None:
    monkeypatch.setattr(check, "_find", lambda _, batch: found(batch, shift=shift, swapped=swapped))
    assert low <= check.box_precision(model, some) <= high


def test_wrong_classes_cost_precision(
    monkeypatch: pytest.MonkeyPatch, some: list[Batch], model: VisionLLM
) -> None:
    monkeypatch.setattr(check, "_find", lambda _, batch: found(batch, swapped=True))
    assert check.box_precision(model, some) < 0.6


def test_answers_count_word_for_word(
    monkeypatch: pytest.MonkeyPatch, some: list[Batch], model: VisionLLM
) -> None:
    """A model that says the targets is right; one wrong token makes its answer wrong."""

    def run(_: VisionLLM, batch: Batch) -> Tensor:
        said = batch.targets.clamp(min=0).clone()
        return torch.nn.functional.one_hot(said, model.config.llm.vocab_size).float()

    monkeypatch.setattr(check, "_run", run)
    monkeypatch.setattr(model.llm, "lm_head", torch.nn.Identity())
    right = check.answers_right(model, some)
    assert right == {"detect": 1.0, "caption": 1.0, "vqa": 1.0, "region": 1.0}

    def wrong(model: VisionLLM, batch: Batch) -> Tensor:
        out = run(model, batch)
        region = ((batch.kind == 3) & (batch.targets >= 0)).nonzero()
        row, place = region[0].tolist()
        out[row, place] = out[row, place].roll(1)
        return out

    monkeypatch.setattr(check, "_run", wrong)
    worse = check.answers_right(model, some)
    # Two regions of six, one of each batch's three.
    assert worse == pytest.approx({**right, "region": 2 / 3})
