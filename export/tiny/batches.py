"""Training batches: scenes of the shapes world with everything that is said about them.

A row of a batch is one picture and several turns of conversation about it; `rows` says who sees
whom. Each row has one main turn, whose groups the object decoder reads: in all rows of a batch it
is of one sort and has the same number of groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.tiny import exchanges
from visionllm_edge.export.tiny.rows import Links, Regions, Row, pack
from visionllm_edge.export.tiny.speaker import KINDS, Said, Speaker
from visionllm_edge.runtime import shapes_world as world
from visionllm_edge.runtime.preprocess import clip_tiles, detector_input
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["KINDS", "Batch", "Mix", "Truth", "batches"]

CLIP_MEAN, CLIP_STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
DETECTOR_MEAN, DETECTOR_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

# (height, width); two thirds of the batches are square.
_SIZES = ((128, 128),) * 8 + ((128, 160), (160, 128), (128, 192), (192, 128))
_CLASS_COUNTS = (1, 1, 2, 3, 4, 5, 6, 6, 6, 7, 8)
_ONE_REGION = 0.35
_ITEM_COUNTS = (1, 1, 2, 2, 3, 4)


@dataclass(frozen=True)
class Mix:
    """Which turns a row has beside its main turn.

    Attributes:
        questions: with short answers.
        captions: whether the picture is described.
        regions: regions described.
        rare: how many of each other turn there are on average: class of a region, several
            regions, grounded caption, pose, generation, editing.
        conversations: share of rows that are real conversations.
        pointing: share of batches whose main turn asks for what regions point at.
        phrases: share of batches whose main turn is a grounded caption.
        length: turns that would make a row longer are left out, the usual ones first; None keeps
            all.
    """

    questions: int = 3
    captions: bool = True
    regions: int = 0
    rare: tuple[float, float, float, float, float, float] = (0.0,) * 6
    conversations: float = 0.2
    pointing: float = 0.0
    phrases: float = 0.0
    length: int | None = None


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
        linked: [B] bool, which rows are real conversations.
        head: prefix and main turn of all other rows end at or before this position.
        image_start: where the image tokens stand in every row.
        regions: what is pointed at, if anything is.
        links: super-link rows by table.
        sort: what the main turn asks: ``names``, ``pointing`` or ``phrases``.
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
    linked: Tensor
    head: int
    image_start: int
    regions: Regions | None
    links: dict[str, Links]
    sort: str


def batches(
    config: VisionLLMConfig,
    tokenizer: Tokenizer,
    *,
    batch: int,
    seed: int | Sequence[int],
    mix: Mix | None = None,
) -> Iterator[Batch]:
    """Endless batches of rows with those turns; a function of the seed."""
    rng = np.random.default_rng(seed)
    speaker = Speaker(tokenizer, config)
    while True:
        yield _make(rng, speaker, config, batch, mix or Mix())


def _make(
    rng: np.random.Generator, speaker: Speaker, config: VisionLLMConfig, n: int, mix: Mix
) -> Batch:
    height, width = _SIZES[rng.integers(len(_SIZES))]
    sort, draw = "names", rng.random()
    if draw < mix.pointing + mix.phrases:
        sort = "pointing" if draw < mix.pointing else "phrases"
    counts = _CLASS_COUNTS if sort == "names" else _ITEM_COUNTS
    count = int(counts[rng.integers(len(counts))])
    mode = str(rng.choice(["[DET]", "[SEG]", "[GRD]"], p=[0.7, 0.17, 0.13]))
    count = 1 if mode == "[GRD]" and sort == "names" else count
    rows, truths, pixels, tiles, patches, cells, meant = [], [], [], [], [], [], []
    side = config.vision.image_size // config.vision.patch_size
    for _ in range(n):
        least = 1 if sort == "names" else count
        most = count if sort == "phrases" else 5
        scene = world.make_scene(rng, width=width, height=height, min_items=least, max_items=most)
        said, truth = _main(rng, scene, sort, mode, count)
        rows.append(_row(rng, speaker, scene, said, mix))
        truths.append(truth)
        meant.append([link.name for link in said.links])
        pixels.append(_pixels(scene, config))
        tiles.append(_tile(scene, config))
        patches.append(_cover(scene, side, side).reshape(12, -1).T)
        cells.append(_cover(scene, height // 8, width // 8))
    packed = pack(rows, speaker, num_embs=config.num_embs, image_size=config.vision.image_size)
    return Batch(
        pixels=torch.from_numpy(np.concatenate(pixels)),
        tiles=torch.from_numpy(np.concatenate(tiles)),
        names=torch.tensor(meant),
        truth=tuple(truths),
        patch_labels=torch.from_numpy(np.stack(patches)),
        cell_labels=torch.from_numpy(np.stack(cells)),
        size=(height, width),
        sort=sort,
        **vars(packed),
    )


def _main(
    rng: np.random.Generator, scene: world.Scene, sort: str, mode: str, count: int
) -> tuple[Said, Truth]:
    """The turn that the object decoder answers, and the right answer."""
    if sort == "pointing":
        chosen = [int(i) for i in rng.permutation(len(scene.items))[:count]]
        return exchanges.interactive(scene, chosen, rng), _truth_of(scene, chosen)
    if sort == "phrases":
        names = [item.name for item in scene.items]
        return exchanges.grounded_caption(scene, rng), _truth(scene, names)
    if mode == "[GRD]":
        found = world.expressions(scene)
        if found:
            names = [found[rng.integers(len(found))][0]]
        else:
            names = world.class_names(scene, rng, 1, kind="phrase")
        return exchanges.ground(names[0], rng), _truth(scene, names)
    kind = str(rng.choice(["shape", "phrase", "mixed"], p=[0.45, 0.35, 0.2]))
    if kind == "shape" and count > len(world.SHAPES):
        kind = "mixed"
    names = world.class_names(scene, rng, count, kind=kind)  # type: ignore[arg-type]
    return exchanges.detect(names, "[DET]" if mode == "[DET]" else "[SEG]", rng), _truth(
        scene, names
    )


def _row(
    rng: np.random.Generator, speaker: Speaker, scene: world.Scene, main: Said, mix: Mix
) -> Row:
    linked = bool(rng.random() < mix.conversations)
    usual = [exchanges.caption(scene, rng)] if mix.captions else []
    usual += [exchanges.question(q) for q in world.questions(scene, rng, mix.questions)]
    items = rng.permutation(np.arange(mix.regions) % len(scene.items))
    usual += [exchanges.describe(scene, int(i), rng) for i in items]
    said = [main, *_rare(rng, scene, mix, linked=linked)]
    if mix.length is None:
        said += usual
    else:
        said = _fitting([*said, *(usual[i] for i in rng.permutation(len(usual)))], speaker, mix)
    # Where turns do not see each other the order means nothing; the link loss wants the main first.
    order = rng.permutation(len(said)) if linked else np.arange(len(said))
    turns = [speaker.turn(said[k], first=not linked or i == 0) for i, k in enumerate(order)]
    return Row(turns, linked, int(np.flatnonzero(order == 0)[0]))


def _fitting(said: list[Said], speaker: Speaker, mix: Mix) -> list[Said]:
    """The first turn, and of the others those that still fit."""
    kept, left = said[:1], (mix.length or 0) - len(speaker.prefix)
    left -= len(speaker.turn(said[0], first=True).ids)
    for one in said[1:]:
        length = len(speaker.turn(one, first=True).ids)
        if length <= left:
            kept.append(one)
            left -= length
    return kept


def _rare(rng: np.random.Generator, scene: world.Scene, mix: Mix, *, linked: bool) -> list[Said]:
    said = []
    counts = (np.asarray(mix.rare) + rng.random(len(mix.rare))).astype(int)
    for _ in range(counts[0]):
        said.append(exchanges.classify(scene, int(rng.integers(len(scene.items))), rng))
    for _ in range(counts[1]):
        # One region is the lesson that has to come first.
        most = 1 if rng.random() < _ONE_REGION else len(scene.items)
        chosen = rng.permutation(len(scene.items))[: rng.integers(1, most + 1)]
        said.append(exchanges.interactive(scene, [int(i) for i in chosen], rng))
    said += [exchanges.grounded_caption(scene, rng) for _ in range(counts[2])]
    said += [exchanges.pose(rng) for _ in range(counts[3])]
    said += [exchanges.generate(rng, alone=not linked) for _ in range(counts[4])]
    said += [exchanges.edit(scene, rng) for _ in range(counts[5])]
    return said


def _pixels(scene: world.Scene, config: VisionLLMConfig) -> np.ndarray:
    height, width = scene.image.shape[:2]
    pixels: np.ndarray = detector_input(
        scene.image,
        shortest=config.deployment.det_shortest_edge,
        longest=config.deployment.det_longest_edge,
        divisor=32,
        buckets=[(height, width)],
        mean=DETECTOR_MEAN,
        std=DETECTOR_STD,
    ).pixels
    return pixels


def _tile(scene: world.Scene, config: VisionLLMConfig) -> np.ndarray:
    size = config.vision.image_size
    return clip_tiles(scene.image, image_size=size, max_tiles=1, mean=CLIP_MEAN, std=CLIP_STD)


def _truth(scene: world.Scene, names: Sequence[str]) -> Truth:
    """Every item that a name fits."""
    hits = [[float(world.matches(name, item)) for name in names] for item in scene.items]
    return _truth_from(scene, hits)


def _truth_of(scene: world.Scene, chosen: Sequence[int]) -> Truth:
    """One item for each class."""
    return _truth_from(
        scene, [[float(i == index) for index in chosen] for i in range(len(scene.items))]
    )


def _truth_from(scene: world.Scene, hits: Sequence[Sequence[float]]) -> Truth:
    height, width = scene.image.shape[:2]
    boxes, classes, masks = [], [], []
    for item, fits in zip(scene.items, hits, strict=True):
        if any(fits):
            x0, y0, x1, y1 = item.box_xyxy
            centre = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height]
            boxes.append([*centre, (x1 - x0) / width, (y1 - y0) / height])
            classes.append(fits)
            masks.append(item.mask)
    g = len(boxes)
    return Truth(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(g, 4),
        classes=torch.tensor(classes, dtype=torch.float32).reshape(g, len(hits[0])),
        masks=torch.from_numpy(np.asarray(masks, np.float32).reshape(g, height, width)),
    )


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
