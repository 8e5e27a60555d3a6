"""Questions about regions: what one shows, which class it is, the masks of what several mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.events import DoneEvent, Event
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.pipelines.formats import choices_format
from visionllm_edge.runtime.pipelines.free import Answer, write_answer
from visionllm_edge.runtime.pipelines.marked import Marked
from visionllm_edge.runtime.pipelines.scripted import Selecting, find_scripted
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2
from visionllm_edge.runtime.prompts import Segment, Text, Turn
from visionllm_edge.runtime.results import TextResult
from visionllm_edge.runtime.task_prompts import (
    classify_question,
    describe_question,
    interactive_answer,
    interactive_question,
    region_name,
    region_segments,
)

__all__ = ["answer_about_region", "find_regions", "question_with_regions"]

_REGION_WORD = re.compile(r"\bregion(\d*)\b")


def answer_about_region(
    pipeline: VisionLLMv2,
    marked: Marked,
    config: GenerationConfig,
    *,
    classes: Sequence[str] | None = None,
) -> Iterator[Event]:
    """Describe one region, or with ``classes`` say which of them it shows, in that very word.

    Raises:
        ContextError: the question does not fit the context; nothing was computed.
        InputError: classes that no answer can consist of.
    """
    assert len(marked) == 1, "one region"
    form = None
    question = describe_question()
    if classes is not None:
        form = choices_format(pipeline.tokenizer, classes, template=pipeline.template)
        question = classify_question(classes)
    sequence = pipeline.prompt((Turn(question),), marked.picture, marked)
    answer = Answer()
    yield from write_answer(pipeline, sequence, config, answer, form=form)
    asked = "".join(segment.text for segment in question if isinstance(segment, Text))
    yield DoneEvent(TextResult(answer.text.strip(), asked, answer.finish_reason))


def find_regions(pipeline: VisionLLMv2, marked: Marked) -> Iterator[Event]:
    """Interactive segmentation: for every region the object that it points at, with its mask.

    Source: VisionLLM v2 (arXiv 2406.08394), table A23 for the question; the best-scoring prediction
    of each region, as its evaluation takes it.
    """
    count = len(marked)
    limit = pipeline.detector.spec.max_text_len
    if count > limit:
        raise InputError(
            f"regions: expected at most {limit} (the detector's limit), got {count}. "
            "Ask in several calls."
        )
    return find_scripted(
        pipeline,
        marked.picture,
        question=interactive_question(count),
        answer=interactive_answer(count),
        labels=[region_name(index) for index in range(1, count + 1)],
        routing="[DET]",
        selecting=Selecting(0.0, count, masks=True, best_of_each=True),
        marked=marked,
    )


def question_with_regions(
    text: str, count: int, *, known: int = 0
) -> tuple[tuple[Segment, ...], tuple[int, ...]]:
    """A user's words with regions in the places where they name them.

    New regions are called ``region{known + 1}`` and so on. A single one may also be called
    ``region``; its first mention counts then. Regions of earlier turns are plain words.

    Args:
        text: what the user wrote.
        count: how many regions come with it.
        known: how many came in earlier turns.

    Returns:
        The segments, and for every place the index of its region, 0 .. count - 1. A region that
        is named twice has two places.

    Raises:
        InputError: a region that the words do not name.
    """
    numbers = range(known + 1, known + count + 1)
    segments: list[Segment] = []
    places: list[int] = []
    end = 0
    plain_too = count == 1 and not re.search(rf"\bregion{known + 1}\b", text)
    for found in _REGION_WORD.finditer(text):
        if found[1]:
            number: int | None = int(found[1])
            if number not in numbers:
                continue
        elif plain_too and not places:
            number = None
        else:
            continue
        segments += [Text(text[end : found.start()]), *region_segments(number)]
        places.append(0 if number is None else number - known - 1)
        end = found.end()
    for index, number in enumerate(numbers):
        if index not in places:
            raise InputError(
                f"question: expected the word region{number} where the region is meant, got none. "
                f"Write for example: What is in region{number}?"
            )
    return (*segments, Text(text[end:])), tuple(places)
