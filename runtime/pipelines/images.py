"""Pictures by scripted answers: the words are known, the hidden states of one group are asked."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.decoder_specs import Making
from visionllm_edge.runtime.diffusion.image_maker import ImageMaker, ImagePlan
from visionllm_edge.runtime.events import (
    DoneEvent,
    Event,
    GroupEvent,
    ImageEvent,
    ProgressEvent,
)
from visionllm_edge.runtime.pipelines.picture import Picture
from visionllm_edge.runtime.pipelines.scripted import hidden_of_groups
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2
from visionllm_edge.runtime.prompts import Segment
from visionllm_edge.runtime.results import ImageResult
from visionllm_edge.runtime.task_prompts import (
    edit_answer,
    edit_question,
    generation_answer,
    generation_question,
)

__all__ = ["make_picture", "make_scripted", "scripted_turn"]

_ROUTING = {"generate": "[GEN]", "edit": "[EDIT]"}


def scripted_turn(what: Making, words: str) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """Question and answer of a caption or an instruction, as in training."""
    if what == "generate":
        return generation_question(words), generation_answer()
    return edit_question(words), edit_answer()


def make_scripted(
    pipeline: VisionLLMv2, what: Making, words: str, plan: ImagePlan, picture: Picture | None
) -> Iterator[Event]:
    """Ask for a picture and make it.

    Args:
        pipeline: the model.
        what: ``generate`` or ``edit``.
        words: the caption or the instruction, as the model was trained on them.
        plan: checked options, used once.
        picture: the one to edit.

    Raises:
        ContextError: the words do not fit the context.
    """
    question, answer = scripted_turn(what, words)
    hidden_TGD = hidden_of_groups(pipeline, picture, question, answer)  # noqa: N806 (axis letters)
    yield GroupEvent(_ROUTING[what], words, 0)
    source = None if picture is None else picture.rgb
    result = yield from make_picture(
        pipeline.maker(what), hidden_TGD[0], plan, words=words, source=source
    )
    yield DoneEvent(result)


def make_picture(
    maker: ImageMaker,
    hidden_GD: NDArray[np.float32],  # noqa: N803 (axis letters)
    plan: ImagePlan,
    *,
    words: str,
    source: NDArray[np.uint8] | None,
) -> Generator[Event, None, ImageResult]:
    """Make a picture of a group's hidden states, however they came about.

    Args:
        maker: the chain.
        hidden_GD: the group's rows, float32 ``[G, D]``.
        plan: checked options, used once.
        words: what the result says it is a picture of.
        source: the picture to edit, uint8 ``[H, W, 3]``.

    Yields:
        A ``ProgressEvent`` for each call of the UNet, then an ``ImageEvent``.
    """
    steps = maker.make(hidden_GD, plan, source)
    while True:
        try:
            done, total = next(steps)
        except StopIteration as end:
            pixels: NDArray[np.uint8] = end.value
            break
        yield ProgressEvent("edit" if maker.edits else "generate", done, total)
    result = ImageResult(
        pixels, text=words, seed=plan.seed, steps=plan.steps, scheduler=plan.sampler
    )
    yield ImageEvent(result)
    return result
