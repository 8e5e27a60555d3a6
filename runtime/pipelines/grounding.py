"""Words linked to places: referring expressions, captions with phrases, a class per pixel.

Source: VisionLLM v2 (arXiv 2406.08394), section 3.1 and its evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.events import DetectionEvent, DoneEvent, Event, GroupEvent
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.pipelines.free import Answer, write_answer
from visionllm_edge.runtime.pipelines.phrases import plain_answer
from visionllm_edge.runtime.pipelines.picture import Picture
from visionllm_edge.runtime.pipelines.scripted import Selecting, hidden_of_groups
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2
from visionllm_edge.runtime.prompts import (
    GROUNDING_QUESTIONS,
    SEGMENTATION_QUESTIONS,
    Turn,
    scripted_answer,
    scripted_grounding,
)
from visionllm_edge.runtime.results import (
    Detection,
    DetectionResult,
    GroundedCaptionResult,
    GroundedPhrase,
    SemanticResult,
)

__all__ = ["caption_with_phrases", "find_expressions", "label_pixels"]

_GRD, _SEG = "[GRD]", "[SEG]"


def find_expressions(
    pipeline: VisionLLMv2,
    picture: Picture,
    expressions: Sequence[str],
    *,
    masks: bool,
    free: GenerationConfig | None,
) -> Iterator[Event]:
    """The one best object of every expression.

    Each expression is asked by itself, because it means one object whatever the others mean; the
    picture's features and the beginning of the prompt are computed once.

    Args:
        pipeline: the model.
        picture: where to look.
        expressions: what to find.
        masks: also give masks.
        free: let the model write the answers, under these options; None scripts them.
    """
    detector = pipeline.detector
    routing = pipeline.check_routing(_GRD)
    found: list[Detection] = []
    texts: list[str] = []
    with pipeline.ahead(picture, detector) as ahead:
        for index, expression in enumerate(expressions):
            question = GROUNDING_QUESTIONS[0].format(expression=expression)
            hidden: NDArray[np.float32] | None
            if free is None:
                hidden = hidden_of_groups(
                    pipeline, picture, question, scripted_grounding(), when_it_fits=ahead.start
                )
                tokenizer = pipeline.tokenizer
                texts.append(tokenizer.decode(tokenizer.encode(scripted_grounding(), bos=False)))
            else:
                answer = Answer()
                sequence = pipeline.prompt((Turn(question),), picture, when_it_fits=ahead.start)
                # The group's event names the expression's place among all, so it is made here.
                for event in write_answer(pipeline, sequence, free, answer):
                    if not isinstance(event, GroupEvent):
                        yield event
                groups = answer.of("detector")
                # More groups than one would mean more than one object; the first one answers.
                hidden = groups[0][1].hidden_ND[None] if groups else None
                routing = groups[0][1].group.routing if groups else routing
                texts.append(answer.text.strip())
            if hidden is None:
                continue
            yield GroupEvent(routing, expression, index)
            ahead.join()
            best = detector.find(
                picture,
                hidden,
                [expression],
                groups=[index],
                threshold=0.0,
                top_k=1,
                masks=masks,
            )
            yield from map(DetectionEvent, best)
            found += best
    yield DoneEvent(
        DetectionResult(
            image_size=picture.size,
            detections=tuple(sorted(found, key=lambda one: -one.score)),
            text="\n".join(texts),
            classes=tuple(expressions),
        )
    )


def caption_with_phrases(
    pipeline: VisionLLMv2,
    picture: Picture,
    question: str,
    config: GenerationConfig,
    selecting: Selecting,
) -> Iterator[Event]:
    """Let the model describe the picture, and find the objects of every phrase that it tags."""
    detector = pipeline.detector
    answer = Answer()
    with pipeline.ahead(picture, detector) as ahead:
        sequence = pipeline.prompt((Turn(question),), picture, when_it_fits=ahead.start)
        yield from write_answer(pipeline, sequence, config, answer)
        text, all_phrases = plain_answer(
            pipeline.tokenizer,
            answer.ids,
            [group.label for group in answer.groups],
            pipeline.routing_ids,
        )
        linked = _linked(answer, all_phrases)
        if linked:
            ahead.join()
    detections: list[Detection] = []
    if linked:
        detections = detector.find(
            picture,
            np.stack([one.hidden_ND for one in linked]),
            [one.phrase.text for one in linked],
            groups=range(len(linked)),
            threshold=selecting.threshold,
            top_k=selecting.top_k,
            masks=selecting.masks,
        )
    yield from map(DetectionEvent, detections)
    yield DoneEvent(
        GroundedCaptionResult(
            image_size=picture.size,
            text=text,
            phrases=tuple(one.phrase for one in linked),
            detections=tuple(detections),
            finish_reason=answer.finish_reason,
        )
    )


def label_pixels(
    pipeline: VisionLLMv2, picture: Picture, classes: Sequence[str], *, threshold: float
) -> Iterator[Event]:
    """Semantic segmentation: the scripted answer names every class with ``[SEG]``."""
    detector = pipeline.detector
    routing = pipeline.check_routing(_SEG)
    answer = scripted_answer(classes, routing)
    question = SEGMENTATION_QUESTIONS[0].format(classes=", ".join(classes))
    with pipeline.ahead(picture, detector) as ahead:
        hidden = hidden_of_groups(pipeline, picture, question, answer, when_it_fits=ahead.start)
        for index, name in enumerate(classes):
            yield GroupEvent(routing, name, index)
        ahead.join()
    labels = detector.semantic(picture, hidden, threshold=threshold)
    text = pipeline.tokenizer.decode(pipeline.tokenizer.encode(answer, bos=False))
    yield DoneEvent(SemanticResult(picture.size, tuple(classes), labels, text))


@dataclass(frozen=True)
class _Linked:
    """A phrase with the hidden states of its group."""

    phrase: GroundedPhrase
    hidden_ND: NDArray[np.float32]  # noqa: N815 (axis letters)


def _linked(answer: Answer, phrases: Sequence[GroundedPhrase]) -> list[_Linked]:
    """The phrases that the detector answers, numbered anew in textual order."""
    groups = dict(answer.of("detector"))
    known = [phrase for phrase in phrases if phrase.group in groups]
    return [
        _Linked(
            GroundedPhrase(phrase.text, phrase.start, phrase.end, number),
            groups[phrase.group].hidden_ND,
        )
        for number, phrase in enumerate(known)
    ]
