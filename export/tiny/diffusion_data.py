"""Training data of the picture branches: sketches, drawn and encoded, with what is said of them.

Pictures are kept in a bank as latents, since drawing and encoding one takes as long as a step over
it; a part of the bank is replaced at every step, so that no picture stays long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.diffusion import VaeEncoderStage
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.tiny.link_states import Past, join, prompt_ids, read_prompts
from visionllm_edge.export.tiny.picture_judge import clip_images
from visionllm_edge.export.tiny.picture_sizes import PICTURE_PX
from visionllm_edge.runtime.shapes_world.edits import (
    Edit,
    Sketch,
    draw_sketch,
    make_edit,
    make_sketch,
    sketch_of,
)
from visionllm_edge.runtime.shapes_world.language import indefinite
from visionllm_edge.runtime.shapes_world.names import COLORS, SHAPES
from visionllm_edge.runtime.task_prompts import (
    EDIT_QUESTIONS,
    GENERATION_QUESTIONS,
    edit_answer,
    edit_question,
    generation_answer,
    generation_question,
)
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = [
    "EditBank",
    "Group",
    "Prompts",
    "SketchBank",
    "as_pixels",
    "draw",
    "edit_meaning",
    "encode",
    "meaning",
    "pictures",
]

NOTHING = len(SHAPES)
"""Class of a shape or colour that is not there."""

LATENT_SIDE = 16
_PAIRS = 0.8
_ENCODED_AT_ONCE = 32


def as_pixels(image: NDArray[np.uint8]) -> Tensor:
    """An RGB picture, uint8 [H,W,3], as float32 [3,H,W] in -1..1."""
    return torch.from_numpy(image).permute(2, 0, 1).float().div(127.5).sub(1)


def cover(sketch: Sketch, index: int | None = None) -> Tensor:
    """How much of each place of the latents its figures cover, or one of them: [1,16,16]."""
    items = draw_sketch(sketch, width=PICTURE_PX, height=PICTURE_PX).items
    chosen = items if index is None else items[index : index + 1]
    mask = np.any([item.mask for item in chosen], axis=0).astype(np.float32)
    return F.avg_pool2d(torch.from_numpy(mask)[None], PICTURE_PX // LATENT_SIDE)


def draw(sketch: Sketch) -> NDArray[np.uint8]:
    """The sketch at the branches' size, uint8 [64,64,3]."""
    return draw_sketch(sketch, width=PICTURE_PX, height=PICTURE_PX).image


def pictures(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Pictures [B,3,64,64] in -1..1 and where figures stand in them, [B,1,64,64] of 0 and 1."""
    images, figures = [], []
    for _ in range(count):
        scene = draw_sketch(make_sketch(rng), width=PICTURE_PX, height=PICTURE_PX)
        images.append(as_pixels(scene.image))
        figures.append(torch.from_numpy(np.any([item.mask for item in scene.items], axis=0)))
    return torch.stack(images), torch.stack(figures)[:, None].float()


@torch.no_grad()
def encode(vae: nn.Module, images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Latents [B,4,16,16], the posterior's mode, not scaled."""
    pixels = torch.stack([as_pixels(image) for image in images])
    encoder = VaeEncoderStage(vae)
    parts = [pixels[i : i + _ENCODED_AT_ONCE] for i in range(0, len(pixels), _ENCODED_AT_ONCE)]
    return torch.cat([encoder(part) for part in parts])


def meaning(names: Sequence[str]) -> list[int]:
    """Shape and colour of the first and of the second name, as class numbers."""
    out = []
    for name in [*names, "", ""][:2]:
        color, shape = name.split() if name else ("", "")
        out += [SHAPES.index(shape) if name else NOTHING, COLORS.index(color) if name else NOTHING]
    return out


def edit_meaning(edit: Edit) -> list[int]:
    """The named figure's shape and colour, then the shape and colour it is to have."""
    new = () if edit.kind == "remove" else (edit.after.names[edit.index],)
    shape, color = meaning(new)[:2]
    if edit.kind == "recolor":
        shape = NOTHING
    elif edit.kind == "replace":
        color = NOTHING
    return [*meaning((edit.before.names[edit.index],))[:2], shape, color]


class Prompts:
    """Scripted prompts up to the routing token, run through the frozen language model."""

    def __init__(
        self, model: VisionLLM, tokenizer: Tokenizer, *, former: Prompts | None = None
    ) -> None:
        """Nothing is kept yet.

        Args:
            model: whose language model runs them.
            tokenizer: its own.
            former: the same of the model that a branch was trained with before.
        """
        self.model, self.tokenizer, self.former = model, tokenizer, former
        self._kept: dict[tuple[str, int], Past] = {}

    def captions(self, texts: Sequence[str], wordings: Sequence[int]) -> Past:
        """Prompts that ask for pictures; each is run once and then kept."""
        out = []
        for text, wording in zip(texts, wordings, strict=True):
            past = self._kept.get((text, wording))
            if past is None:
                question = generation_question(text, GENERATION_QUESTIONS[wording])
                ids = prompt_ids(self.tokenizer, question, generation_answer(), "[GEN]")
                past = self._kept[text, wording] = read_prompts(self.model.llm, [ids])
            out.append(past)
        return join(out)

    @torch.no_grad()
    def edits(
        self,
        instructions: Sequence[str],
        wordings: Sequence[int],
        images: Sequence[NDArray[np.uint8]],
    ) -> Past:
        """Prompts that ask for a change of a picture, which they show."""
        tokens = self.model.image_tokens(clip_images(self.model, images))
        rows = [
            prompt_ids(
                self.tokenizer,
                edit_question(text, EDIT_QUESTIONS[wording]),
                edit_answer(),
                "[EDIT]",
                image_tokens=tokens.shape[1],
            )
            for text, wording in zip(instructions, wordings, strict=True)
        ]
        patch = self.tokenizer.control_id("<im_patch>")
        return read_prompts(self.model.llm, rows, image=tokens, image_id=patch)


@dataclass(frozen=True)
class Group:
    """Prompts, and several pictures for each.

    Attributes:
        past: of B prompts.
        former: of the same prompts, behind the language model that the branch knew before.
        meanings: int64 [B,4], classes for the helping heads.
        latents: [B,n,4,16,16], not scaled.
        figures: [B,n,1,16,16], how much of each place the figures cover that the words are about.
    sources: [B,n,4,16,16], latents of the picture to be edited; None in generation.
    """

    past: Past
    former: Past | None
    meanings: Tensor
    latents: Tensor
    figures: Tensor
    sources: Tensor | None


class SketchBank:
    """Latents of composed sketches, by caption.

    Composed, because a caption says nothing about places and sizes: with one way to draw it the
    UNet has far less to learn.
    """

    def __init__(
        self, vae: nn.Module, prompts: Prompts, rng: np.random.Generator, *, pictures: int
    ) -> None:
        """Draw the first pictures."""
        self._vae, self._prompts, self._rng = vae, prompts, rng
        self._bank: dict[tuple[str, ...], list[Tensor]] = {}
        self._add([sketch_of(make_sketch(rng).names, rng, composed=True) for _ in range(pictures)])
        self._singles = [names for names in self._bank if len(names) == 1]
        self._pairs = [names for names in self._bank if len(names) == 2]

    def group(self, prompts: int, each: int, *, fresh: int = 8) -> Group:
        """Some captions and ``each`` pictures of every one; ``fresh`` pictures are new."""
        rng = self._rng
        pairs = round(_PAIRS * prompts)
        captions = [
            self._singles[i] for i in rng.integers(len(self._singles), size=prompts - pairs)
        ]
        captions += [self._pairs[i] for i in rng.integers(len(self._pairs), size=pairs)]
        if fresh:
            renewed = [captions[int(i)] for i in rng.integers(prompts, size=fresh)]
            self._add([sketch_of(names, rng, composed=True) for names in renewed])
        latents = []
        for names in captions:
            kept = self._bank[names]
            latents.append(torch.stack([kept[i] for i in rng.integers(len(kept), size=each)]))
        texts = [" and ".join(indefinite(name) for name in names) for names in captions]
        wordings = _wordings(rng, len(texts), len(GENERATION_QUESTIONS))
        past = self._prompts.captions(texts, wordings)
        former = self._prompts.former
        before = None if former is None else former.captions(texts, wordings)
        meanings = torch.tensor([meaning(names) for names in captions])
        both = torch.stack(latents).float()
        return Group(past, before, meanings, both[:, :, :-1], both[:, :, -1:], None)

    def _add(self, sketches: Sequence[Sketch]) -> None:
        for start in range(0, len(sketches), 256):
            some = sketches[start : start + 256]
            latents = encode(self._vae, [draw(sketch) for sketch in some]).half()
            for sketch, latent in zip(some, latents, strict=True):
                kept = self._bank.setdefault(sketch.names, [])
                kept.append(torch.cat([latent, cover(sketch).half()]))
                # The oldest goes: most captions have few pictures, those of one figure many.
                limit = 400 if len(sketch.names) == 1 else 24
                del kept[:-limit]


@dataclass(frozen=True)
class _KeptEdit:
    before: Tensor
    after: Tensor
    changed: Tensor
    past: Past
    former: Past | None
    meaning: list[int]


class EditBank:
    """Edits with the latents of both pictures and the prompt's keys and values."""

    def __init__(
        self, vae: nn.Module, prompts: Prompts, rng: np.random.Generator, *, edits: int
    ) -> None:
        """Draw the first pictures."""
        self._vae, self._prompts, self._rng = vae, prompts, rng
        self._size = edits
        self._kept: list[_KeptEdit] = []
        while len(self._kept) < edits:
            self._add(_ENCODED_AT_ONCE)

    def group(self, prompts: int, each: int, *, fresh: int = 4) -> Group:
        """Some edits, each several times; ``fresh`` ones are new."""
        if fresh:
            self._add(fresh)
        rows = [self._kept[i] for i in self._rng.integers(len(self._kept), size=prompts)]
        before = torch.stack([row.before for row in rows]).float()
        after = torch.stack([row.after for row in rows]).float()
        changed = torch.stack([row.changed for row in rows]).float()
        formers = [row.former for row in rows if row.former is not None]
        return Group(
            join([_single(row.past) for row in rows]),
            join([_single(past) for past in formers]) if formers else None,
            torch.tensor([row.meaning for row in rows]),
            after[:, None].expand(-1, each, -1, -1, -1),
            changed[:, None].expand(-1, each, -1, -1, -1),
            before[:, None].expand(-1, each, -1, -1, -1),
        )

    def _add(self, count: int) -> None:
        edits = [make_edit(self._rng) for _ in range(count)]
        before, after = (
            [draw(s) for s in some]
            for some in zip(*[(edit.before, edit.after) for edit in edits], strict=True)
        )
        latents = encode(self._vae, [*before, *after]).half()
        wordings = _wordings(self._rng, count, len(EDIT_QUESTIONS))
        texts = [edit.instruction for edit in edits]
        past = self._prompts.edits(texts, wordings, before)
        former = self._prompts.former
        past_before = None if former is None else former.edits(texts, wordings, before)
        for i, edit in enumerate(edits):
            changed = cover(edit.before, edit.index)
            if edit.kind != "remove":
                changed = changed.maximum(cover(edit.after, edit.index))
            self._kept.append(
                _KeptEdit(
                    before=latents[i],
                    after=latents[count + i],
                    changed=changed,
                    past=_half(past, i),
                    former=None if past_before is None else _half(past_before, i),
                    meaning=edit_meaning(edit),
                )
            )
        del self._kept[: -self._size]


def _half(past: Past, row: int) -> Past:
    """One row, in half the memory."""
    return Past(past.cache[row : row + 1].half(), past.lengths[row : row + 1])


def _single(past: Past) -> Past:
    return Past(past.cache.float(), past.lengths)


def _wordings(rng: np.random.Generator, count: int, kinds: int) -> list[int]:
    """The first wording for half of them: it is the one that the runtime uses."""
    return [0 if rng.random() < 0.5 else int(rng.integers(kinds)) for _ in range(count)]
