"""Scripted answers: the words are known, only the hidden states of the groups are asked.

Prompt and templated answer go through the decoder in one prefill; nothing is generated. This is how
the authors measure detection, and the fast way whenever the classes are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.events import DetectionEvent, DoneEvent, Event, GroupEvent
from visionllm_edge.runtime.pipelines.marked import Marked
from visionllm_edge.runtime.pipelines.picture import Picture
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2
from visionllm_edge.runtime.prompts import Segment, Turn
from visionllm_edge.runtime.results import DetectionResult

__all__ = ["Selecting", "find_scripted", "hidden_of_groups"]


@dataclass(frozen=True)
class Selecting:
    """Which detections are wanted.

    Attributes:
        threshold: smallest score.
        top_k: how many at most.
        masks: whether each gets a mask.
        best_of_each: exactly one for each label instead, whatever its score.
    """

    threshold: float
    top_k: int
    masks: bool
    best_of_each: bool = False


def hidden_of_groups(
    pipeline: VisionLLMv2,
    picture: Picture | None,
    question: str | tuple[Segment, ...],
    answer: Sequence[Segment],
    marked: Marked | None = None,
    *,
    when_it_fits: Callable[[], None] | None = None,
) -> NDArray[np.float32]:
    """Hidden states ``[T, N, D]`` of the answer's groups, in order, from one prefill.

    What stands behind the last group cannot change them and is left out. ``when_it_fits`` is called
    before anything is computed.

    Raises:
        ContextError: prompt and answer do not fit.
    """
    turn = Turn(question, tuple(answer))
    sequence = pipeline.prompt((turn,), picture, marked, when_it_fits=when_it_fits)
    sequence.cut_after_last_group()
    wanted = [
        position
        for group in sequence.groups
        for position in range(group.position + 1, group.position + 1 + group.rows)
    ]
    hidden = pipeline.session.run(sequence, hidden=wanted).hidden_rD
    assert hidden is not None
    return hidden.reshape(len(sequence.groups), -1, hidden.shape[-1])


def find_scripted(
    pipeline: VisionLLMv2,
    picture: Picture,
    *,
    question: str | tuple[Segment, ...],
    answer: Sequence[Segment],
    labels: Sequence[str],
    routing: str,
    selecting: Selecting,
    marked: Marked | None = None,
) -> Iterator[Event]:
    """Ask, and find the objects of every label.

    Args:
        pipeline: the model.
        picture: where to look.
        question: the user's turn.
        answer: the scripted answer, with one group per label.
        labels: names of the groups.
        routing: their routing token, for the events.
        selecting: which detections are wanted.
        marked: the regions that the question points at.
    """
    detector = pipeline.detector
    with pipeline.ahead(picture, detector) as ahead:
        hidden = hidden_of_groups(
            pipeline, picture, question, answer, marked, when_it_fits=ahead.start
        )
        assert len(hidden) == len(labels), "one group per label"
        for index, label in enumerate(labels):
            yield GroupEvent(routing, label, index)
        ahead.join()
    detections = detector.find(
        picture,
        hidden,
        labels,
        groups=range(len(labels)),
        threshold=selecting.threshold,
        top_k=selecting.top_k,
        masks=selecting.masks,
        best_of_each=selecting.best_of_each,
    )
    for detection in detections:
        yield DetectionEvent(detection)
    tokenizer = pipeline.tokenizer
    yield DoneEvent(
        DetectionResult(
            image_size=picture.size,
            detections=tuple(detections),
            text=tokenizer.decode(tokenizer.encode(answer, bos=False)),
            classes=tuple(labels),
        )
    )
