"""What the model's own object decoder sees in made pictures: the measure of the picture branches.

Each picture is asked for the names it must show, among near misses (the same shape in another
colour, the same colour on another shape). A name counts as found if a box has it as its best name,
with a score above the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visionllm_edge.export.components.geometry import Geometry
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.tiny.batches import CLIP_MEAN, CLIP_STD, DETECTOR_MEAN, DETECTOR_STD
from visionllm_edge.runtime import prompts
from visionllm_edge.runtime.preprocess import clip_tiles, detector_input
from visionllm_edge.runtime.shapes_world.edits import Edit
from visionllm_edge.runtime.shapes_world.names import COLORS, SHAPES
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["THRESHOLD", "clip_images", "edit_done", "found_names", "near_misses"]

THRESHOLD = 0.3
_ASKED = 6
_SIDE = 128


def near_misses(names: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The names and others that are easily taken for them, six together, in random order."""
    out = list(dict.fromkeys(names))
    while len(out) < _ASKED:
        color, shape = out[int(rng.integers(len(names)))].split()
        if rng.random() < 0.5:
            color = COLORS[int(rng.integers(len(COLORS)))]
        else:
            shape = SHAPES[int(rng.integers(len(SHAPES)))]
        if f"{color} {shape}" not in out:
            out.append(f"{color} {shape}")
    return [out[i] for i in rng.permutation(len(out))]


def clip_images(model: VisionLLM, images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Vision encoder input [B,3,I,I] of pictures [H,W,3]."""
    tiles = [
        clip_tiles(
            image,
            image_size=model.config.vision.image_size,
            max_tiles=1,
            mean=CLIP_MEAN,
            std=CLIP_STD,
        )
        for image in images
    ]
    return torch.from_numpy(np.concatenate(tiles))


@torch.no_grad()
def found_names(
    model: VisionLLM,
    tokenizer: Tokenizer,
    images: Sequence[NDArray[np.uint8]],
    asked: Sequence[Sequence[str]],
) -> list[dict[str, float]]:
    """Names found in each picture with their best score.

    Args:
        model: the frozen model.
        tokenizer: its own.
        images: square pictures, uint8 [H,W,3].
        asked: names to look for, equally many per picture.
    """
    states = _class_states(model, tokenizer, clip_images(model, images), asked)
    pixels = [
        detector_input(
            image,
            shortest=_SIDE,
            longest=_SIDE,
            divisor=32,
            buckets=[(_SIDE, _SIDE)],
            mean=DETECTOR_MEAN,
            std=DETECTOR_STD,
        ).pixels
        for image in images
    ]
    geometry = Geometry(_SIDE, _SIDE)
    size = geometry.full_size()
    maps = model.gdino.backbone_maps(torch.from_numpy(np.concatenate(pixels)))
    _, map2, map3, map4 = maps
    memory, text = model.gdino.encode(map2, map3, map4, size, states, geometry)
    logits = model.gdino.decode(memory, text, size, geometry)[1]
    scores, best = logits.sigmoid().max(dim=-1)
    out = []
    for row, names in enumerate(asked):
        found: dict[str, float] = {}
        for score, index in zip(scores[row].tolist(), best[row].tolist(), strict=True):
            if score > THRESHOLD:
                found[names[index]] = max(score, found.get(names[index], 0.0))
        out.append(found)
    return out


def edit_done(edit: Edit, found: dict[str, float]) -> tuple[bool, bool]:
    """Whether an edit's result shows the change, and whether it still shows everything else."""
    old, new = set(edit.before.names), set(edit.after.names)
    changed = new - old <= found.keys() and not (old - new) & found.keys()
    return changed, (old & new) <= found.keys()


def _class_states(
    model: VisionLLM, tokenizer: Tokenizer, tiles: Tensor, asked: Sequence[Sequence[str]]
) -> Tensor:
    """Hidden states [B,T,N,D] of the super link of each name."""
    config = model.config
    routing, patch = tokenizer.control_id("[DET]"), tokenizer.control_id("<im_patch>")
    rows, groups = [], []
    for names in asked:
        question = prompts.DETECTION_QUESTIONS[0].format(classes=", ".join(names))
        turn = prompts.Turn(question, prompts.scripted_answer(names))
        parts = prompts.conversation([turn], image=True, template=config.deployment.template)
        ids: list[int] = []
        places = []
        for token in tokenizer.encode(parts, image_tokens=config.vision.tokens_per_tile):
            ids.append(token)
            if token == routing:
                places.append(range(len(ids), len(ids) + config.num_embs))
                ids += [0] * config.num_embs
        rows.append(ids)
        groups.append([list(place) for place in places])
    longest = max(len(row) for row in rows)
    batch = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    embeds = model.llm.model.embed_tokens(batch)
    image = model.image_tokens(tiles)
    start = rows[0].index(patch)
    embeds = torch.cat([embeds[:, :start], image, embeds[:, start + image.shape[1] :]], dim=1)
    at = torch.tensor(groups)
    row_index = torch.arange(len(rows))[:, None, None]
    table = model.emb_embeddings_det.weight.expand(*at.shape, -1)
    embeds = embeds.index_put((row_index, at), table)
    hidden = model.llm.teacher_forced(embeds)
    return hidden[row_index, at]
