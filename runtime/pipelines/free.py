"""Free answers: the model writes, and the hidden states of its groups are collected on the way.

Every group is kept with its routing token, its place and its own number of rows, so that groups of
several decoders may stand in one answer, in any order and any turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.errors import InputError
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
from visionllm_edge.runtime.pipelines.labels import asked_for, group_label
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
    """What the model has written so far.

    Attributes:
        text: with tags and routing tokens by name.
        ids: without markers.
        groups: in textual order.
        finish_reason: ``stop`` or ``length``; empty while it is written.
    """

    text: str = ""
    ids: list[int] = field(default_factory=list)
    groups: list[AnsweredGroup] = field(default_factory=list)
    finish_reason: str = ""

    def of(self, decoder: str) -> list[tuple[int, AnsweredGroup]]:
        """The groups that a decoder answers, with their index in the answer."""
        return [(i, g) for i, g in enumerate(self.groups) if g.group.decoder == decoder]


def write_answer(
    pipeline: VisionLLMv2,
    sequence: TokenSequence,
    config: GenerationConfig,
    answer: Answer,
    *,
    question: str | None = None,
    form: AnswerFormat | None = None,
    every_token: bool = False,
) -> Iterator[Event]:
    """Generate an answer; fills ``answer`` and extends ``sequence`` on the way.

    Args:
        pipeline: the model.
        sequence: the prompt.
        config: generation options.
        answer: an empty answer.
        question: what was asked; it labels groups whose answer does not repeat it.
        form: the only answers that are allowed.
        every_token: let the model write routing tokens that this bundle cannot answer, and say so;
            else it can write none that has no super-link table.

    Raises:
        ContextError: no room for a single token, or for the longest answer of a format.
        InputError: the model wrote a routing token that the bundle has no decoder for.
    """
    missing = pipeline.unanswered if every_token else {}
    generation = Generation(
        pipeline.session,
        sequence,
        pipeline.tokenizer,
        with_room(config, form),
        suppressed=pipeline.suppressed.difference(missing),
        form=form,
        group_limits=pipeline.group_limits,
    )
    start = since = len(sequence.ids)
    token = pipeline.tokenizer.eos
    for step in generation:
        token = step.token
        if token in missing:
            raise InputError(missing[token])
        answer.text += step.text
        yield TokenEvent(step.text, token)
        if step.group is None:
            continue
        assert step.hidden_ND is not None
        before = sequence.ids[since : step.group.token_index]
        since = step.group.token_index + 1
        routing = step.group.routing
        label = asked_for(routing, question) if question is not None else None
        if label is None:
            first = all(group.group.routing != routing for group in answer.groups)
            label = group_label(pipeline.tokenizer, before, first=first, routing=routing)
        answer.groups.append(AnsweredGroup(step.group, label, step.hidden_ND))
        yield GroupEvent(routing, label, len(answer.groups) - 1)
    if generation.tail:
        answer.text += generation.tail
        yield TokenEvent(generation.tail, token)
    answer.ids = sequence.ids[start:]
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
    with pipeline.ahead(picture, detector) as ahead:
        sequence = pipeline.prompt((Turn(question),), picture, when_it_fits=ahead.start)
        yield from write_answer(pipeline, sequence, config, answer, form=form)
        groups = [group for _, group in answer.of("detector")]
        if groups:
            ahead.join()
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
