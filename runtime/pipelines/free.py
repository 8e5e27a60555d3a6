"""Free answers: the model writes, and the hidden states of its groups are collected on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.events import (
    DetectionEvent,
    DoneEvent,
    Event,
    GroupEvent,
    TokenEvent,
)
from visionllm_edge.runtime.llm.answer_format import AnswerFormat
from visionllm_edge.runtime.llm.generate import Generation
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.llm.sequence import Group, TokenSequence
from visionllm_edge.runtime.pipelines.formats import choices_format, class_list_format, with_room
from visionllm_edge.runtime.pipelines.labels import group_label
from visionllm_edge.runtime.pipelines.picture import Picture
from visionllm_edge.runtime.pipelines.scripted import Selecting
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2
from visionllm_edge.runtime.prompts import Turn
from visionllm_edge.runtime.results import Detection, DetectionResult, TextResult

__all__ = ["Answer", "AnsweredGroup", "answer_text", "find_free", "write_answer"]


@dataclass(frozen=True)
class AnsweredGroup:
    """A group that the model wrote: its label, and the hidden states that a decoder reads."""

    group: Group
    label: str
    hidden_ND: NDArray[np.float32]  # noqa: N815 (axis letters)


@dataclass
class Answer:
    """What the model has written so far."""

    text: str = ""
    groups: list[AnsweredGroup] = field(default_factory=list)
    finish_reason: str = ""

    def for_detector(self) -> list[tuple[int, AnsweredGroup]]:
        """The groups that the detector answers, with their index in the answer."""
        return [(i, g) for i, g in enumerate(self.groups) if g.group.decoder == "detector"]


def write_answer(
    pipeline: VisionLLMv2,
    sequence: TokenSequence,
    config: GenerationConfig,
    answer: Answer,
    *,
    expression: str | None = None,
    form: AnswerFormat | None = None,
) -> Iterator[Event]:
    """Generate an answer; fills ``answer`` and extends ``sequence`` on the way.

    Args:
        pipeline: the model.
        sequence: the prompt.
        config: generation options.
        answer: an empty answer.
        expression: label of a ``[GRD]`` group, whose answer does not repeat what was asked.
        form: the only answers that are allowed.

    Raises:
        ContextError: no room for a single token, or for the longest answer of a format.
    """
    if pipeline.has_detector:
        limit = min(config.max_groups, pipeline.detector.settings.max_text_len)
        config = replace(config, max_groups=limit)
    generation = Generation(
        pipeline.session,
        sequence,
        pipeline.tokenizer,
        with_room(config, form),
        suppressed=pipeline.suppressed,
        form=form,
    )
    since = len(sequence.ids)
    token = pipeline.tokenizer.eos
    for step in generation:
        token = step.token
        answer.text += step.text
        yield TokenEvent(step.text, token)
        if step.group is None:
            continue
        assert step.hidden_ND is not None
        before = sequence.ids[since : step.group.token_index]
        since = step.group.token_index + 1
        if step.group.routing == "[GRD]" and expression is not None:
            label = expression
        else:
            label = group_label(pipeline.tokenizer, before, first=not answer.groups)
        answer.groups.append(AnsweredGroup(step.group, label, step.hidden_ND))
        yield GroupEvent(step.group.routing, label, len(answer.groups) - 1)
    if generation.tail:
        answer.text += generation.tail
        yield TokenEvent(generation.tail, token)
    answer.finish_reason = generation.finish_reason


def answer_text(
    pipeline: VisionLLMv2,
    picture: Picture,
    prompt: str,
    config: GenerationConfig,
    *,
    question: str | None,
    choices: Sequence[str] | None = None,
) -> Iterator[Event]:
    """Caption and vqa: an answer of which only the words count."""
    form = None
    if choices is not None:
        form = choices_format(pipeline.tokenizer, choices, template=pipeline.template)
    answer = Answer()
    sequence = pipeline.prompt((Turn(prompt),), picture)
    yield from write_answer(pipeline, sequence, config, answer, form=form)
    yield DoneEvent(TextResult(answer.text.strip(), question, answer.finish_reason))


def find_free(
    pipeline: VisionLLMv2,
    picture: Picture,
    config: GenerationConfig,
    *,
    question: str,
    labels: Sequence[str],
    expression: str | None,
    selecting: Selecting,
    listed_by: str | None = None,
) -> Iterator[Event]:
    """Let the model name the classes itself, and find what it named.

    With ``listed_by``, a routing token, the answer is a list of asked classes and nothing else.

    The result's classes are the asked ones, followed by names that the model made up. A class that
    the model leaves out has no detections; one that it writes twice is looked for twice.
    """
    detector = pipeline.detector
    answer = Answer()
    form = None
    if listed_by is not None:
        tokenizer, template = pipeline.tokenizer, pipeline.template
        form = class_list_format(tokenizer, labels, listed_by, template=template)
    sequence = pipeline.prompt((Turn(question),), picture)
    yield from write_answer(pipeline, sequence, config, answer, expression=expression, form=form)
    groups = [group for _, group in answer.for_detector()]
    classes = list(labels)
    for group in groups:
        if group.label not in classes:
            classes.append(group.label)
    detections: list[Detection] = []
    if groups:
        detections = detector.find(
            picture,
            np.stack([group.hidden_ND for group in groups]),
            [group.label for group in groups],
            groups=[classes.index(group.label) for group in groups],
            threshold=selecting.threshold,
            top_k=selecting.top_k,
            masks=selecting.masks,
        )
    for detection in detections:
        yield DetectionEvent(detection)
    yield DoneEvent(
        DetectionResult(
            image_size=picture.size,
            detections=tuple(detections),
            text=answer.text.strip(),
            classes=tuple(classes),
        )
    )
