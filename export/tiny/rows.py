"""Rows of a batch: turns of conversation packed behind one image, and who may see whom.

The image prefix stands once; the turns follow one after another. In most rows each turn sees only
the prefix and itself, at the positions it would have as the first turn; some rows are real
conversations whose turns see all that came before. A turn that stands alone sees only itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visionllm_edge.export.tiny.exchanges import MARKS
from visionllm_edge.export.tiny.speaker import Group, Pointed, Speaker, SpokenTurn
from visionllm_edge.runtime.resize import touched_by_bilinear

__all__ = ["Links", "Packed", "Regions", "Row", "pack"]


@dataclass(frozen=True)
class Row:
    """Turns about one picture; ``main`` is the number of the one with the detector's groups."""

    turns: Sequence[SpokenTurn]
    linked: bool
    main: int


@dataclass(frozen=True)
class Regions:
    """Regions of a batch.

    Attributes:
        masks: [R,1,I,I] float32, 0 or 1.
        rows: [R] whose picture.
        places: [R] where the region's token stands.
        names: [R,2] shape and colour of the item that is marked.
        boxes: [R,4] its box, cxcywh.
    """

    masks: Tensor
    rows: Tensor
    places: Tensor
    names: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Links:
    """Super-link rows of one table.

    Attributes:
        rows: [M] in which row of the batch.
        places: [M,N] where.
        marks: [M,K] what a throw-away head reads from them; K is 0 for ``det``.
        names: [M,2] shape and colour; -1 where there is no name.
        boxes: [M,4] cxcywh; -1 where there is no box.
        extra: [M] bool: not a group that the link loss holds already.
        pointed: [M] bool: only a region says which object is meant.
    """

    rows: Tensor
    places: Tensor
    marks: Tensor
    names: Tensor
    boxes: Tensor
    extra: Tensor
    pointed: Tensor


@dataclass(frozen=True)
class Packed:
    """Rows as tensors.

    Attributes:
        ids: [B,L] token ids with marker ids after each routing token.
        mask: [B,1,L,L] bool, what each row may see.
        positions: [B,L].
        targets: [B,L] next id, or -100.
        kind: [B,L] kind of each target.
        groups: [B,T,N] places of the main turn's super-link rows.
        linked: [B] bool, real conversations.
        head: how far prefix and main turn of the unlinked rows reach.
        image_start: where the image tokens stand in every row.
        regions: None where the batch has none.
        links: by table, only those that occur.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    targets: Tensor
    kind: Tensor
    groups: Tensor
    linked: Tensor
    head: int
    image_start: int
    regions: Regions | None
    links: dict[str, Links]


def pack(rows: Sequence[Row], speaker: Speaker, *, num_embs: int, image_size: int) -> Packed:
    """Put the turns behind the prefix, row by row; the main turns must have equally many groups."""
    prefix = speaker.prefix
    n, p = len(rows), len(prefix)
    length = max(p + sum(len(turn.ids) for turn in row.turns) for row in rows)
    count = len(rows[0].turns[rows[0].main].groups)
    ids, positions, kind = (np.zeros((n, length), np.int64) for _ in range(3))
    targets = np.full((n, length), -100, np.int64)
    mask = np.zeros((n, 1, length, length), bool)
    groups = np.zeros((n, count, num_embs), np.int64)
    causal = np.tril(np.ones((length, length), bool))
    pointed: list[Pointed] = []
    slots: list[tuple[int, int]] = []
    found: dict[str, list[tuple[int, int, Group, bool]]] = {}
    head = p
    for b, row in enumerate(rows):
        ids[b, :p], positions[b, :p] = prefix, np.arange(p)
        mask[b, 0, :p, :p] = causal[:p, :p]
        at = p
        for number, turn in enumerate(row.turns):
            end = at + len(turn.ids)
            ids[b, at:end], targets[b, at:end], kind[b, at:end] = turn.ids, turn.targets, turn.kind
            if row.linked:
                mask[b, 0, at:end, :end] = causal[at:end, :end]
            else:
                mask[b, 0, at:end, :p] = not turn.alone
                mask[b, 0, at:end, at:end] = causal[at:end, at:end]
            base = 0 if turn.alone else at if row.linked else p
            positions[b, at:end] = base + np.arange(len(turn.ids))
            if number == row.main:
                groups[b] = np.asarray([group.rows for group in turn.groups]) + at
                head = max(head, 0 if row.linked else end)
            for group in turn.groups:
                extra = row.linked or number != row.main
                found.setdefault(group.table, []).append((b, at, group, extra))
            slots += [(b, at + place) for place in turn.slots]
            pointed += turn.regions
            at = end
        mask[b, 0, at:, 0] = True  # padding rows need something to look at
    return Packed(
        ids=torch.from_numpy(ids),
        mask=torch.from_numpy(mask),
        positions=torch.from_numpy(positions),
        targets=torch.from_numpy(targets),
        kind=torch.from_numpy(kind),
        groups=torch.from_numpy(groups),
        linked=torch.tensor([row.linked for row in rows]),
        head=head,
        image_start=speaker.image_start,
        regions=_regions(pointed, slots, image_size) if slots else None,
        links={table: _links(table, entries) for table, entries in found.items()},
    )


def _regions(pointed: Sequence[Pointed], slots: Sequence[tuple[int, int]], size: int) -> Regions:
    masks = np.stack([touched_by_bilinear(one.marked, size, size) for one in pointed])
    where = torch.tensor(slots)
    return Regions(
        masks=torch.from_numpy(masks[:, None].astype(np.float32)),
        rows=where[:, 0],
        places=where[:, 1],
        names=torch.tensor([one.link.name for one in pointed]),
        boxes=torch.tensor([one.link.box for one in pointed]),
    )


def _links(table: str, entries: Sequence[tuple[int, int, Group, bool]]) -> Links:
    nothing = (-1.0,) * 4
    marks = [group.link.marks or (0.0,) * MARKS.get(table, 0) for _, _, group, _ in entries]
    return Links(
        rows=torch.tensor([b for b, *_ in entries]),
        places=torch.tensor([[at + row for row in group.rows] for _, at, group, _ in entries]),
        marks=torch.tensor(marks, dtype=torch.float32),
        names=torch.tensor([group.link.name or (-1, -1) for _, _, group, _ in entries]),
        boxes=torch.tensor([group.link.box or nothing for _, _, group, _ in entries]),
        extra=torch.tensor([extra for *_, extra in entries]),
        pointed=torch.tensor([group.link.pointed for _, _, group, _ in entries]),
    )
