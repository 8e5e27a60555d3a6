"""Quick checks on pictures never trained on, of the torch model; the log of a training shows them.

Run as ``python -m visionllm_edge.export.tiny.check FOLDER`` on a training folder. The numbers are
smaller siblings of what ``visionllm-edge eval`` measures on the bundle: an answer counts if every
one of its tokens is the most likely one, which is what greedy decoding would say.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.geometry import Geometry
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.tiny.batches import Batch, Mix, batches
from visionllm_edge.export.tiny.losses import corners
from visionllm_edge.export.tiny.speaker import KINDS
from visionllm_edge.export.tiny.trainer import hidden_states, look, main_states, region_rows
from visionllm_edge.export.tiny.training_folder import load_tokenizer, trained_model
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["answers_right", "box_precision", "held_out", "pointed_iou"]

_SEED = (77, 2026)  # training seeds are single numbers
_SAID = Mix(questions=3, regions=2, rare=(0.5, 0.5, 0.5, 0.1, 0.15, 0.2), conversations=0.0)
_THRESHOLDS = [0.5 + 0.05 * i for i in range(10)]


@torch.no_grad()
def held_out(
    model: VisionLLM, tokenizer: Tokenizer, *, said: int = 6, found: int = 6
) -> dict[str, float]:
    """All checks, over so many batches of 16 pictures each."""
    out: dict[str, float] = {}
    if said:
        stream = batches(model.config, tokenizer, batch=16, seed=_SEED, mix=_SAID)
        out |= answers_right(model, list(itertools.islice(stream, said)))
    if found:
        for name, mix in (
            ("box_ap", Mix(0, captions=False, conversations=0.0)),
            ("pointed_iou", Mix(0, captions=False, conversations=0.0, pointing=1.0)),
        ):
            stream = batches(model.config, tokenizer, batch=16, seed=_SEED, mix=mix)
            some = list(itertools.islice(stream, found))
            out[name] = (box_precision if name == "box_ap" else pointed_iou)(model, some)
    return out


@torch.no_grad()
def answers_right(model: VisionLLM, some: list[Batch]) -> dict[str, float]:
    """Share of answers of each kind that greedy decoding would give word for word."""
    right = dict.fromkeys(KINDS, 0)
    asked = dict.fromkeys(KINDS, 0)
    for batch in some:
        hidden = _run(model, batch)
        for b in range(len(hidden)):
            wanted = (batch.targets[b] >= 0).nonzero()[:, 0]
            best = model.llm.lm_head(hidden[b, wanted]).argmax(-1)
            good = best == batch.targets[b, wanted]
            # An answer's targets end with the end token's.
            ends = (batch.targets[b, wanted] == 2).nonzero()[:, 0].tolist()
            for start, end in zip([0, *(e + 1 for e in ends[:-1])], ends, strict=True):
                name = KINDS[int(batch.kind[b, wanted[start]])]
                asked[name] += 1
                right[name] += bool(good[start : end + 1].all())
    return {name: right[name] / asked[name] for name in KINDS if asked[name]}


@torch.no_grad()
def pointed_iou(model: VisionLLM, some: list[Batch]) -> float:
    """Mean mask IoU of the best object of each region with the item that it points at."""
    values: list[float] = []
    for batch in some:
        gdino, geometry = model.gdino, Geometry(*batch.size)
        queries, logits, _, map1, memory = _find(model, batch)
        best = logits.argmax(dim=1)  # [B,T]
        chosen = queries.gather(1, best[..., None].expand(-1, -1, queries.shape[-1]))
        masks = gdino.masks(map1, memory, chosen, geometry)
        masks = F.interpolate(masks, batch.size, mode="bilinear", align_corners=False) > 0
        for b, truth in enumerate(batch.truth):
            for t in range(truth.classes.shape[1]):
                real = truth.masks[truth.classes[:, t].argmax()] > 0
                both = float((masks[b, t] & real).sum())
                values.append(both / max(1.0, float((masks[b, t] | real).sum())))
    return sum(values) / len(values)


@torch.no_grad()
def box_precision(model: VisionLLM, some: list[Batch]) -> float:
    """Average precision of boxes over thresholds 0.5 to 0.95, all classes in one list."""
    scored: list[tuple[float, list[bool]]] = []
    count = 0
    for batch in some:
        _, logits, boxes, _, _ = _find(model, batch)
        for b, truth in enumerate(batch.truth):
            count += int(truth.classes.sum())
            for t in range(logits.shape[-1]):
                real = truth.boxes[truth.classes[:, t] > 0]
                scored += _hits(logits[b, :, t].sigmoid(), boxes[b], real)
    scored.sort(key=lambda entry: -entry[0])
    hits = torch.tensor([entry[1] for entry in scored], dtype=torch.float32)
    good = hits.cumsum(0)
    precision = good / torch.arange(1, len(hits) + 1)[:, None]
    # Precision at a recall is the best at that recall or beyond.
    precision = precision.flip(0).cummax(0).values.flip(0)
    values = []
    for i in range(len(_THRESHOLDS)):
        recall = good[:, i].contiguous() / max(1, count)
        at = torch.searchsorted(recall, torch.linspace(0, 1, 101))
        padded = F.pad(precision[:, i], (0, 1))
        values.append(float(padded[at.clamp(max=len(recall))].mean()))
    return sum(values) / len(values)


def _hits(scores: Tensor, boxes: Tensor, real: Tensor) -> list[tuple[float, list[bool]]]:
    """Each prediction's score and whether it is a first hit, per threshold."""
    overlap = _iou(corners(boxes), corners(real))
    taken = torch.zeros(len(_THRESHOLDS), len(real), dtype=torch.bool)
    out = []
    for q in scores.argsort(descending=True).tolist():
        hit = []
        for i, threshold in enumerate(_THRESHOLDS):
            free = overlap[q].masked_fill(taken[i], -1.0)
            good = len(real) > 0 and float(free.max()) >= threshold
            if good:
                taken[i, int(free.argmax())] = True
            hit.append(good)
        out.append((float(scores[q]), hit))
    return out


def _iou(a: Tensor, b: Tensor) -> Tensor:
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b))
    return inter / (area_a[:, None] + area_b - inter)


def _run(model: VisionLLM, batch: Batch, *, end: int | None = None) -> Tensor:
    before, states = look(model, batch.tiles)
    regions = None
    if batch.regions is not None:
        regions = region_rows(model, batch.tiles, batch.regions, before, states)
    return hidden_states(model, batch, model.vl_bridge(states[:, 1:]), regions, end=end)


def _find(model: VisionLLM, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, logits, boxes, map1 and memory for the main turns."""
    gdino, geometry = model.gdino, Geometry(*batch.size)
    size = geometry.full_size()
    states = main_states(_run(model, batch, end=batch.head), batch)
    map1, map2, map3, map4 = gdino.backbone_maps(batch.pixels)
    memory, text = gdino.encode(map2, map3, map4, size, states, geometry)
    queries, logits, boxes = gdino.decode(memory, text, size, geometry)
    return queries, logits, boxes, map1, memory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--said", type=int, default=6, help="batches of 16 for the answers")
    parser.add_argument("--found", type=int, default=6, help="batches of 16 for the detector")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, value in held_out(
        trained_model(arguments.folder),
        load_tokenizer(arguments.folder),
        said=arguments.said,
        found=arguments.found,
    ).items():
        print(f"{name} {value:.3f}")
