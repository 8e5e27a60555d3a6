"""Realistic inputs of the keypoint decoder's stages.

As for the object decoder, which instance stands where follows from an order of scores; a question
whose order rounding cannot change is taken out of a few.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from visionllm_edge.export.components.geometry import Geometry
from visionllm_edge.export.components.queries import Proposals
from visionllm_edge.export.stages.clear_order import rows_in_clear_order
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.stage import Bucket

__all__ = [
    "PoseCase",
    "PoseEncoded",
    "keypoint_states",
    "object_states",
    "pose_encoded",
    "pose_maps",
]

_OBJECT_SEED, _KEYPOINT_SEED = 60, 80
_ATTEMPTS = 8
# A large decoder takes seconds a question.
_MANY_QUERIES, _FEW_ATTEMPTS = 100, 2
# Scores of a stage are right to about 1e-6 of their scale.
_CLEAR_MARGIN = 1e-4


@dataclass(frozen=True)
class PoseCase(Case):
    """Sizes of one run with keypoints.

    Attributes:
        keypoints: names that are asked for.
    """

    keypoints: int = 4


@dataclass(frozen=True)
class PoseEncoded:
    """Memory [1,S,d], text [1,No,d], instances [1,I,d] and boxes [1,I,4] of one question."""

    memory: Tensor
    text: Tensor
    instances: Tensor
    boxes: Tensor


_Maps = tuple[Tensor, ...]
# Of each model's examples, what was asked for last.
_maps: WeakKeyDictionary[Examples, tuple[tuple[Bucket, float], _Maps]] = WeakKeyDictionary()
_encoded: WeakKeyDictionary[Examples, dict[tuple[Bucket, float, int], PoseEncoded]] = (
    WeakKeyDictionary()
)
_REMEMBERED = 4


def object_states(examples: Examples, count: int, attempt: int = 0) -> Tensor:
    """Hidden states [1,No,N,D] of object classes."""
    return examples.text_states(count, seed=_OBJECT_SEED + attempt)


def keypoint_states(examples: Examples, count: int) -> Tensor:
    """Hidden states [1,K,N,D] of keypoint names."""
    return examples.text_states(count, seed=_KEYPOINT_SEED)


def pose_maps(examples: Examples, bucket: Bucket, fill: float) -> _Maps:
    """Feature maps of one picture."""
    key = (bucket, fill)
    if examples not in _maps or _maps[examples][0] != key:
        with torch.no_grad():
            found = examples.model.unipose.backbone_maps(examples.pixels(bucket, fill))
        _maps[examples] = key, found
    return _maps[examples][1]


def pose_encoded(examples: Examples, bucket: Bucket, fill: float, texts: int) -> PoseEncoded:
    """Memory, text and instances of one question."""
    remembered = _encoded.setdefault(examples, {})
    key = (bucket, fill, texts)
    if key not in remembered:
        if len(remembered) >= _REMEMBERED:
            remembered.clear()
        remembered[key] = _encode(examples, bucket, fill, texts)
    return remembered[key]


@torch.no_grad()
def _encode(examples: Examples, bucket: Bucket, fill: float, texts: int) -> PoseEncoded:
    geometry, size = Geometry(*bucket), examples.valid_size(bucket, fill)
    unipose = examples.model.unipose
    level = unipose.levels(size, geometry)
    maps = pose_maps(examples, bucket, fill)
    usable = level.proposals_ok > 0
    best: tuple[float, PoseEncoded] | None = None
    many = unipose.config.num_queries > _MANY_QUERIES
    for attempt in range(_FEW_ATTEMPTS if many else _ATTEMPTS):
        states = object_states(examples, texts, attempt)
        memory, text = unipose.encode(maps[0], maps[1], maps[2], size, states, geometry)
        proposals = unipose.propose(memory, text, level)
        margin = _proposal_margin(proposals, usable)
        if margin < _CLEAR_MARGIN:
            scores = proposals.scores.amax(dim=-1)[0]
            count = min(len(scores), unipose.config.num_queries + 1)
            step = _CLEAR_MARGIN * float(scores.abs().max())
            memory = memory[:, rows_in_clear_order(scores, usable, count, step=step)]
            proposals = unipose.propose(memory, text, level)
            margin = _proposal_margin(proposals, usable)
        found = unipose.box_layers(proposals, memory, text, level, geometry)[-1]
        scores = found.logits.amax(dim=-1)[0]
        ranked = scores.topk(min(len(scores), unipose.config.num_instances + 1)).values
        margin = min(margin, float((ranked[:-1] - ranked[1:]).min() / scores.abs().max()))
        if best is None or margin > best[0]:
            best = margin, PoseEncoded(memory, text, *unipose.best_instances(found))
        if margin >= _CLEAR_MARGIN:
            break
    assert best is not None, "at least one attempt"
    return best[1]


def _proposal_margin(proposals: Proposals, usable: Tensor) -> float:
    """Smallest step between the scores of the chosen proposals and the first one left out."""
    scores = proposals.scores.amax(dim=-1)[0]
    top, index = scores.topk(min(len(scores), proposals.top.shape[1] + 1))
    counts = usable[index]
    steps = (top[:-1] - top[1:])[counts[:-1] | counts[1:]]
    return float(steps.min() / scores.abs().max()) if len(steps) else float("inf")
