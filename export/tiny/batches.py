"""Training batches: scenes of the shapes world with everything that is said about them.

A row of a batch is one picture and several turns of conversation about it. The image prefix stands
once; the turns follow one after another. Most rows let each turn see only the prefix and itself, at
the positions it would have as the first turn; some are real conversations whose turns see all that
came before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.runtime import prompts
from visionllm_edge.runtime import shapes_world as world
from visionllm_edge.runtime.preprocess import clip_tiles, detector_input
from visionllm_edge.runtime.prompts import Control, Segment, Text
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["KINDS", "Batch", "Truth", "batches"]

CLIP_MEAN, CLIP_STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
DETECTOR_MEAN, DETECTOR_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

KINDS = ("detect", "caption", "vqa")
"""Kinds of turns; each has a loss weight of its own."""

_CONVERSATION_SHARE = 0.2
# (height, width); two thirds of the batches are square.
_SIZES = ((128, 128),) * 8 + ((128, 160), (160, 128), (128, 192), (192, 128))
_CLASS_COUNTS = (1, 1, 2, 3, 4, 5, 6, 6, 6, 7, 8)


@dataclass(frozen=True)
class Truth:
    """What one picture holds for the classes asked.

    Attributes:
        boxes: [G,4] cxcywh in 0..1.
        classes: [G,T] 0 or 1.
        masks: [G,H,W] 0 or 1.
    """

    boxes: Tensor
    classes: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Batch:
    """One step's worth.

    Attributes:
        pixels: [B,3,H,W] detector images, un-padded size ``size``.
        tiles: [B,3,I,I] vision encoder images.
        ids: [B,L] token ids with marker ids after each routing token.
        mask: [B,1,L,L] bool, what each row may see.
        positions: [B,L].
        targets: [B,L] next id, or -100.
        kind: [B,L] index into ``KINDS`` of each target.
        groups: [B,T,N] positions of the super-link rows of each class.
        names: [B,T,2] which shape each class names, and which colour (0 is none, then 1..6).
        truth: per picture.
        patch_labels: [B,P,12] shapes and colours that cover each image patch.
        cell_labels: [B,12,H/8,W/8] the same on the detector's grid.
        size: (height, width) in pixels.
    """

    pixels: Tensor
    tiles: Tensor
    ids: Tensor
    mask: Tensor
    positions: Tensor
    targets: Tensor
    kind: Tensor
    groups: Tensor
    names: Tensor
    truth: tuple[Truth, ...]
    patch_labels: Tensor
    cell_labels: Tensor
    size: tuple[int, int]


@dataclass
class _Turn:
    ids: list[int]
    targets: list[int]
    kind: int
    groups: list[list[int]]


class _Speaker:
    """Turns segments into ids and targets; remembers what it has encoded."""

    def __init__(self, tokenizer: Tokenizer, config: VisionLLMConfig) -> None:
        self.tokenizer = tokenizer
        markers = ["[EMB]", *(f"[EMB{i}]" for i in range(2, config.num_embs + 1))]
        self.markers = [tokenizer.control_id(name) for name in markers]
        self.routing = {tokenizer.control_id(n) for n in ("[DET]", "[SEG]", "[GRD]")}
        self.template = config.deployment.template
        parts = prompts.conversation([prompts.Turn("")], image=True, template=self.template)
        self.prefix = tokenizer.encode(parts[:2], image_tokens=config.vision.tokens_per_tile)
        self.image_start = self.prefix.index(tokenizer.control_id("<im_patch>"))

    def turn(self, question: str, answer: Sequence[Segment], kind: int, *, first: bool) -> _Turn:
        ids = self._encode(prompts.Turn(question, tuple(answer)), first=first)
        question_ids = self._encode(prompts.Turn(question), first=first)
        answer_start = len(question_ids)
        assert ids[:answer_start] == question_ids, "the answer changed the question's pieces"
        out: list[int] = []
        learn: list[bool] = []
        groups: list[list[int]] = []
        for i, token in enumerate(ids):
            out.append(token)
            learn.append(i >= answer_start)
            if token in self.routing and i >= answer_start:
                groups.append(list(range(len(out), len(out) + len(self.markers))))
                out += self.markers
                learn += [False] * len(self.markers)
        targets = [
            out[i + 1] if i + 1 < len(out) and learn[i + 1] else -100 for i in range(len(out))
        ]
        return _Turn(out, targets, kind, groups)

    def _encode(self, turn: prompts.Turn, *, first: bool) -> list[int]:
        """Ids of one turn as it stands after the image, or after an earlier turn."""
        before = [] if first else [prompts.Turn("", ())]
        parts = prompts.conversation([*before, turn], image=True, template=self.template)
        start = parts.index(prompts.ImageSlot() if first else Control("</s>"))
        return self.tokenizer.encode(parts[start:], image_tokens=1, bos=False)[1:]


def batches(
    config: VisionLLMConfig, tokenizer: Tokenizer, *, batch: int, seed: int, questions: int = 3
) -> Iterator[Batch]:
    """Endless batches of rows with that many questions each; a function of the seed."""
    rng = np.random.default_rng(seed)
    speaker = _Speaker(tokenizer, config)
    while True:
        yield _make(rng, speaker, config, batch, questions)


def _make(
    rng: np.random.Generator, speaker: _Speaker, config: VisionLLMConfig, n: int, questions: int
) -> Batch:
    height, width = _SIZES[rng.integers(len(_SIZES))]
    count = int(_CLASS_COUNTS[rng.integers(len(_CLASS_COUNTS))])
    mode = str(rng.choice(["[DET]", "[SEG]", "[GRD]"], p=[0.7, 0.17, 0.13]))
    count = 1 if mode == "[GRD]" else count
    rows, truths, pixels, tiles, patches, cells = [], [], [], [], [], []
    meant = []
    deployment = config.deployment
    for _ in range(n):
        scene = world.make_scene(rng, width=width, height=height)
        names, det = _detect_turn(rng, scene, mode, count)
        rows.append(_row(rng, speaker, scene, det, questions))
        truths.append(_truth(scene, names))
        meant.append([_meaning(name) for name in names])
        pixels.append(
            detector_input(
                scene.image,
                shortest=deployment.det_shortest_edge,
                longest=deployment.det_longest_edge,
                divisor=32,
                buckets=[(height, width)],
                mean=DETECTOR_MEAN,
                std=DETECTOR_STD,
            ).pixels
        )
        tiles.append(
            clip_tiles(
                scene.image,
                image_size=config.vision.image_size,
                max_tiles=1,
                mean=CLIP_MEAN,
                std=CLIP_STD,
            )
        )
        side = config.vision.image_size // config.vision.patch_size
        patches.append(_cover(scene, side, side).reshape(12, -1).T)
        cells.append(_cover(scene, height // 8, width // 8))
    prefix = speaker.prefix
    length = max(len(prefix) + sum(len(t.ids) for t, _ in row) for row in rows)
    ids = np.zeros((n, length), np.int64)
    positions = np.zeros((n, length), np.int64)
    targets = np.full((n, length), -100, np.int64)
    kind = np.zeros((n, length), np.int64)
    mask = np.zeros((n, 1, length, length), bool)
    groups = np.zeros((n, count, config.num_embs), np.int64)
    p = len(prefix)
    causal = np.tril(np.ones((length, length), bool))
    for b, row in enumerate(rows):
        ids[b, :p], positions[b, :p] = prefix, np.arange(p)
        mask[b, 0, :p, :p] = causal[:p, :p]
        at, base = p, p
        for turn, linked in row:
            end = at + len(turn.ids)
            ids[b, at:end], targets[b, at:end], kind[b, at:end] = turn.ids, turn.targets, turn.kind
            base = at if linked else p
            if linked:
                mask[b, 0, at:end, :end] = causal[at:end, :end]
            else:
                mask[b, 0, at:end, :p] = True
                mask[b, 0, at:end, at:end] = causal[at:end, at:end]
            positions[b, at:end] = base + np.arange(len(turn.ids))
            if turn.groups:
                groups[b] = np.asarray(turn.groups) + at
            at = end
        mask[b, 0, at:, 0] = True  # padding rows need something to look at
    return Batch(
        pixels=torch.from_numpy(np.concatenate(pixels)),
        tiles=torch.from_numpy(np.concatenate(tiles)),
        ids=torch.from_numpy(ids),
        mask=torch.from_numpy(mask),
        positions=torch.from_numpy(positions),
        targets=torch.from_numpy(targets),
        kind=torch.from_numpy(kind),
        groups=torch.from_numpy(groups),
        names=torch.tensor(meant),
        truth=tuple(truths),
        patch_labels=torch.from_numpy(np.stack(patches)),
        cell_labels=torch.from_numpy(np.stack(cells)),
        size=(height, width),
    )


def _detect_turn(
    rng: np.random.Generator, scene: world.Scene, mode: str, count: int
) -> tuple[list[str], tuple[str, tuple[Segment, ...]]]:
    if mode == "[GRD]":
        found = world.expressions(scene)
        if found:
            names = [found[rng.integers(len(found))][0]]
        else:
            names = world.class_names(scene, rng, 1, kind="phrase")
        question = _some(rng, prompts.GROUNDING_QUESTIONS).format(expression=names[0])
        return names, (question, prompts.scripted_grounding())
    kind = str(rng.choice(["shape", "phrase", "mixed"], p=[0.45, 0.35, 0.2]))
    if kind == "shape" and count > len(world.SHAPES):
        kind = "mixed"
    names = world.class_names(scene, rng, count, kind=kind)  # type: ignore[arg-type]
    wordings = prompts.DETECTION_QUESTIONS if mode == "[DET]" else prompts.SEGMENTATION_QUESTIONS
    question = _some(rng, wordings).format(classes=", ".join(names))
    return names, (question, prompts.scripted_answer(names, mode))


def _row(
    rng: np.random.Generator,
    speaker: _Speaker,
    scene: world.Scene,
    det: tuple[str, tuple[Segment, ...]],
    questions: int,
) -> list[tuple[_Turn, bool]]:
    said: list[tuple[str, tuple[Segment, ...], int]] = [(*det, 0)]
    said.append((_some(rng, prompts.CAPTION_QUESTIONS), (Text(world.caption(scene)),), 1))
    for q in world.questions(scene, rng, questions):
        said.append((f"{q.text} {prompts.SHORT_ANSWER}", (Text(q.answer),), 2))
    linked = bool(rng.random() < _CONVERSATION_SHARE)
    order = rng.permutation(len(said))
    return [
        (speaker.turn(*said[k], first=not linked or i == 0), linked) for i, k in enumerate(order)
    ]


def _truth(scene: world.Scene, names: Sequence[str]) -> Truth:
    height, width = scene.image.shape[:2]
    boxes, classes, masks = [], [], []
    for item in scene.items:
        hits = [float(world.matches(name, item)) for name in names]
        if any(hits):
            x0, y0, x1, y1 = item.box_xyxy
            centre = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height]
            boxes.append([*centre, (x1 - x0) / width, (y1 - y0) / height])
            classes.append(hits)
            masks.append(item.mask)
    g = len(boxes)
    return Truth(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(g, 4),
        classes=torch.tensor(classes, dtype=torch.float32).reshape(g, len(names)),
        masks=torch.from_numpy(np.asarray(masks, np.float32).reshape(g, height, width)),
    )


def _meaning(name: str) -> tuple[int, int]:
    *color, shape = name.split()
    return world.SHAPES.index(shape), 1 + world.COLORS.index(color[0]) if color else 0


def _cover(scene: world.Scene, rows: int, cols: int) -> np.ndarray:
    """[12,rows,cols]: which shapes and colours cover at least a fifth of each cell."""
    height, width = scene.image.shape[:2]
    out = np.zeros((12, rows, cols), np.float32)
    y = np.linspace(0, height, rows + 1).astype(int)
    x = np.linspace(0, width, cols + 1).astype(int)
    area = np.diff(y)[:, None] * np.diff(x)[None]
    for item in scene.items:
        sums = np.add.reduceat(np.add.reduceat(item.mask.astype(np.int32), y[:-1], 0), x[:-1], 1)
        hit = (sums >= 0.2 * area).astype(np.float32)
        for channel in (world.SHAPES.index(item.shape), 6 + world.COLORS.index(item.color)):
            out[channel] = np.maximum(out[channel], hit)
    return out


def _some(rng: np.random.Generator, texts: Sequence[str]) -> str:
    """The first wording half of the time: it is the one the runtime uses."""
    return texts[0] if rng.random() < 0.5 else texts[int(rng.integers(len(texts)))]
