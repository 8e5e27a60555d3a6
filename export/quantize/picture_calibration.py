"""Calibration sequences of a VisionLLM: conversations about pictures, and some plain text.

The pictures are scenes of the shapes world, whose truth is known. What is said about each is a
detection with its routing tokens and super-link rows, a caption and a question, tokenised, prompted
and embedded by the runtime's own code. So the search sees the image rows and the hidden states that
decoders behind the language model will read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.llm.weights import EMBEDDING
from visionllm_edge.export.preprocessing import PREPROCESS
from visionllm_edge.export.quantize.calibration import (
    Calibration,
    Float,
    embed_ids,
    text_calibration,
)
from visionllm_edge.runtime import prompts, shapes_world
from visionllm_edge.runtime.llm.embeddings import SuperLink
from visionllm_edge.runtime.llm.sequence import TokenSequence
from visionllm_edge.runtime.preprocess import clip_tiles
from visionllm_edge.runtime.prompts import Text, Turn
from visionllm_edge.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from visionllm_edge.export.llm.weights import LlmWeights
    from visionllm_edge.export.tokenizer import ConvertedTokenizer

__all__ = ["PICTURES", "picture_calibration"]

PICTURES = 24
"""Conversations; every third grounds an expression, the others detect or segment classes."""

_TEXTS, _TEXT_LENGTH = 4, 256
_SEED = 20_261_124
_SIDES = ((128, 128), (128, 160), (160, 128))
_ROUTING = ("[DET]", "[SEG]", "[GRD]")


def picture_calibration(
    weights: LlmWeights,
    model: VisionLLM,
    tokenizer: ConvertedTokenizer,
    text: Path | None = None,
    *,
    pictures: int = PICTURES,
) -> Calibration:
    """Conversations about pictures, then pieces of text.

    Args:
        weights: of the language model.
        model: gives the vision encoder and the super-link rows.
        tokenizer: of the checkpoint.
        text: see `text_calibration`.
        pictures: number of conversations.

    Raises:
        ConfigError: no such text, or too little of it.
    """
    words = Tokenizer(
        tokenizer.definition,
        controls=tokenizer.controls,
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        space_after_control=tokenizer.space_after_control,
    )
    told = [_conversation(weights, model, words, index) for index in range(pictures)]
    read = text_calibration(
        weights,
        lambda piece: words.encode([Text(piece)], bos=False),
        text,
        sequences=_TEXTS,
        length=_TEXT_LENGTH,
    )
    return Calibration(
        (*told, *read.sequences), f"{pictures} pictures of the shapes world, {read.origin}"
    )


def _conversation(weights: LlmWeights, model: VisionLLM, words: Tokenizer, index: int) -> Float:
    rng = np.random.default_rng([_SEED, index])
    height, width = _SIDES[index % len(_SIDES)]
    scene = shapes_world.make_scene(rng, width=width, height=height)
    turns = [_find(scene, rng, _ROUTING[index % len(_ROUTING)]), _caption(scene), _ask(scene, rng)]
    order = rng.permutation(len(turns))
    config = model.config
    segments = prompts.conversation(
        [turns[i] for i in order], image=True, template=config.deployment.template
    )
    ids = words.encode(segments, image_tokens=config.vision.tokens_per_tile)
    rows_ND = model.emb_embeddings_det.weight.detach().float().numpy()  # noqa: N806 (axis letters)
    link = SuperLink("det", _ROUTING, rows_ND, "detector")
    names = {words.control_id(name): name for name in _ROUTING}
    patch = words.control_id("<im_patch>")
    sequence = TokenSequence(links=dict.fromkeys(names, link), names=names, im_patch=patch)
    sequence.append(ids)
    return _embedded(weights, sequence.keys, patch, _image(model, scene.image), rows_ND)


def _embedded(
    weights: LlmWeights, keys: Sequence[int], patch: int, image: Float, link: Float
) -> Float:
    """Rows of a context; a key is an id, or -1 - r for row r of a super-link table."""
    kept = np.array(keys[: weights.config.max_position_embeddings], np.int64)
    rows = embed_ids(weights.tensor(EMBEDDING), np.maximum(kept, 0))
    places = np.flatnonzero(kept == patch)
    rows[places] = image[: len(places)]
    linked = kept < 0
    rows[linked] = link[-1 - kept[linked]]
    return rows


def _image(model: VisionLLM, rgb: NDArray[np.uint8]) -> Float:
    """Image tokens of a picture as one tile, [P,D]."""
    clip = PREPROCESS.clip
    size = model.config.vision.image_size
    tiles = clip_tiles(rgb, image_size=size, max_tiles=1, mean=clip.mean, std=clip.std)
    with torch.no_grad():
        tokens = model.image_tokens(torch.from_numpy(tiles))
    rows: Float = tokens[0].float().numpy()
    return rows


def _find(scene: shapes_world.Scene, rng: np.random.Generator, routing: str) -> Turn:
    if routing == "[GRD]":
        found = shapes_world.expressions(scene)
        name = found[0][0] if found else scene.items[0].name
        question = prompts.GROUNDING_QUESTIONS[0].format(expression=name)
        return Turn(question, prompts.scripted_grounding())
    count = int(rng.integers(1, 7))
    names = shapes_world.class_names(scene, rng, count, kind="mixed")
    asked = prompts.DETECTION_QUESTIONS if routing == "[DET]" else prompts.SEGMENTATION_QUESTIONS
    question = asked[0].format(classes=", ".join(names))
    return Turn(question, prompts.scripted_answer(names, routing))


def _caption(scene: shapes_world.Scene) -> Turn:
    return Turn(prompts.CAPTION_QUESTIONS[0], (Text(shapes_world.caption(scene)),))


def _ask(scene: shapes_world.Scene, rng: np.random.Generator) -> Turn:
    (asked,) = shapes_world.questions(scene, rng, 1)
    return Turn(f"{asked.text} {prompts.SHORT_ANSWER}", (Text(asked.answer),))
