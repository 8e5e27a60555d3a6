"""What is said becomes ids: a turn of conversation with what the model is to learn from it.

The tokens are those that the runtime sends: the same templates, controls and marker ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.runtime import prompts
from visionllm_edge.runtime.prompts import Control, Segment
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["KINDS", "TABLES", "Group", "Link", "Pointed", "Said", "Speaker", "SpokenTurn"]

KINDS = ("detect", "caption", "vqa", "region", "grounded", "route")
"""Kinds of turns; each has a loss weight of its own. ``route``: answers that are always alike."""

TABLES = {
    "[DET]": "det",
    "[SEG]": "det",
    "[GRD]": "det",
    "[POSE]": "pose",
    "[GEN]": "gen",
    "[EDIT]": "edit",
}
"""Which super-link table follows each routing token."""


@dataclass(frozen=True)
class Link:
    """What one routing token of an answer stands for.

    Attributes:
        name: shape and colour as numbers (colour 0 is none, then 1..6); None where it has none.
        box: cxcywh in 0..1 of the one item that is meant; None where there is not one.
        marks: what a throw-away head has to read from the rows; empty for none.
        pointed: only a region says which object is meant.
    """

    name: tuple[int, int] | None = None
    box: tuple[float, float, float, float] | None = None
    marks: tuple[float, ...] = ()
    pointed: bool = False


@dataclass(frozen=True)
class Pointed:
    """A region of a question: marked pixels, bool [H,W], and the item that they mark."""

    marked: NDArray[np.bool_]
    link: Link


@dataclass(frozen=True)
class Said:
    """One exchange before it is encoded.

    Attributes:
        question: what is asked.
        answer: what is to be answered.
        kind: one of ``KINDS``.
        links: one for each routing token of the answer.
        regions: what is pointed at, one for each ``<region>`` of the question.
        alone: a conversation of its own, without a picture.
    """

    question: str | tuple[Segment, ...]
    answer: tuple[Segment, ...]
    kind: str
    links: tuple[Link, ...] = ()
    regions: tuple[Pointed, ...] = ()
    alone: bool = False


@dataclass(frozen=True)
class Group:
    """The rows of one routing token: places in the turn, and what they stand for."""

    table: str
    rows: tuple[int, ...]
    link: Link


@dataclass
class SpokenTurn:
    """An encoded exchange.

    Attributes:
        ids: token ids with the marker ids.
        targets: next id, or -100.
        kind: index into ``KINDS``.
        groups: in the order of the answer.
        slots: places of ``<region>``, in the order of ``regions``.
        regions: see `Said`.
        alone: see `Said`.
    """

    ids: list[int]
    targets: list[int]
    kind: int
    groups: list[Group] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    regions: tuple[Pointed, ...] = ()
    alone: bool = False


class Speaker:
    """Encodes exchanges.

    Attributes:
        prefix: ids up to and with the image.
        image_start: where the image tokens begin in it.
    """

    def __init__(self, tokenizer: Tokenizer, config: VisionLLMConfig) -> None:
        """Take the tokenizer of the checkpoint and the config for template and counts."""
        self.tokenizer = tokenizer
        emb = tokenizer.control_id("[EMB]")
        names = ["[EMB]", *(f"[EMB{i}]" for i in range(2, config.num_embs + 1))]
        short, long = [tokenizer.control_id(n) for n in names], [emb] * config.num_embs_gen
        self.markers = {"det": short, "pose": short, "gen": long, "edit": long}
        self.routing = {tokenizer.control_id(name): table for name, table in TABLES.items()}
        self.region = tokenizer.control_id("<region>")
        self.template = config.deployment.template
        parts = prompts.conversation([prompts.Turn("")], image=True, template=self.template)
        self.prefix = tokenizer.encode(parts[:2], image_tokens=config.vision.tokens_per_tile)
        self.image_start = self.prefix.index(tokenizer.control_id("<im_patch>"))

    def turn(self, said: Said, *, first: bool) -> SpokenTurn:
        """Encode one exchange as it stands behind the image (``first``) or behind another one."""
        ids = self._encode(prompts.Turn(said.question, said.answer), said.alone, first)
        question = self._encode(prompts.Turn(said.question), said.alone, first)
        answer_start = len(question)
        assert ids[:answer_start] == question, "the answer changed the question's pieces"
        out: list[int] = []
        learn: list[bool] = []
        groups: list[Group] = []
        for i, token in enumerate(ids):
            out.append(token)
            learn.append(i >= answer_start)
            table = self.routing.get(token) if i >= answer_start else None
            if table is not None:
                markers = self.markers[table]
                link = said.links[len(groups)] if said.links else Link()
                groups.append(Group(table, tuple(range(len(out), len(out) + len(markers))), link))
                out += markers
                learn += [False] * len(markers)
        assert len(said.links) in (0, len(groups)), "a link for each routing token"
        slots = [i for i, token in enumerate(out) if token == self.region]
        assert len(slots) == len(said.regions), "a mask for each <region>"
        targets = [
            out[i + 1] if i + 1 < len(out) and learn[i + 1] else -100 for i in range(len(out))
        ]
        kind = KINDS.index(said.kind)
        return SpokenTurn(out, targets, kind, groups, slots, said.regions, said.alone)

    def _encode(self, turn: prompts.Turn, alone: bool, first: bool) -> list[int]:
        if alone:
            parts = prompts.conversation([turn], image=False, template=self.template)
            return self.tokenizer.encode(parts)
        before: Sequence[prompts.Turn] = [] if first else [prompts.Turn("", ())]
        parts = prompts.conversation([*before, turn], image=True, template=self.template)
        start = parts.index(prompts.ImageSlot() if first else Control("</s>"))
        return self.tokenizer.encode(parts[start:], image_tokens=1, bos=False)[1:]
