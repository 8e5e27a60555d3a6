"""A conversation about one picture: turns, typed events, boxes for what the answers name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from visionllm_edge.runtime.events import DetectionEvent, Event
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.llm.sequence import TokenSequence
from visionllm_edge.runtime.pipelines.conversation import Conversation
from visionllm_edge.runtime.pipelines.free import Answer, AnsweredGroup, write_answer
from visionllm_edge.runtime.pipelines.labels import asked_expression
from visionllm_edge.runtime.pipelines.picture import Picture
from visionllm_edge.runtime.pipelines.requests import check_question
from visionllm_edge.runtime.pipelines.scripted import Selecting
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2
from visionllm_edge.runtime.prompts import Turn, follow_up
from visionllm_edge.runtime.results import ChatResult, Detection, Span

__all__ = ["ChatSession"]


class ChatSession(Conversation[ChatResult]):
    """Turns of one conversation.

    Args:
        pipeline: the model.
        picture: what is talked about; None for a conversation without one.
        config: generation options of every turn.
        selecting: which detections are wanted.
    """

    def __init__(
        self,
        pipeline: VisionLLMv2,
        picture: Picture | None,
        *,
        config: GenerationConfig,
        selecting: Selecting,
    ) -> None:
        """Start without history; nothing is computed yet."""
        super().__init__(config)
        self._pipeline = pipeline
        self._picture = picture
        self._selecting = selecting

    def stream(self, text: str, *, config: GenerationConfig | None = None) -> Iterator[Event]:
        """Ask, and get the answer as it is made.

        The turn enters the history with the ``DoneEvent``; a stream that is given up before leaves
        the history as it was. What the answer's groups stand for is looked for when the words are
        complete.

        Raises:
            ContextError: history and question do not fit; raised here, not by the iterator.
            InputError: no question.
        """
        question = check_question(text)
        sequence = self._prompt(question)
        self._pipeline.session.require(len(sequence) + 1)
        return self._events(question, sequence, config or self._config)

    def _prompt(self, question: str) -> TokenSequence:
        if self._sequence is None:
            return self._pipeline.prompt((Turn(question),), self._picture)
        return self._pipeline.extend(
            self._sequence.copy(), follow_up(question, self._pipeline.template), None
        )

    def _events(
        self, question: str, sequence: TokenSequence, config: GenerationConfig
    ) -> Iterator[Event]:
        answer = Answer()
        yield from write_answer(
            self._pipeline, sequence, config, answer, expression=asked_expression(question)
        )
        detections = sorted(self._find(answer), key=lambda found: -found.score)
        for detection in detections:
            yield DetectionEvent(detection)
        result = ChatResult(
            text=answer.text.strip(),
            spans=tuple(
                Span(group.group.routing, group.label, index)
                for index, group in enumerate(answer.groups)
            ),
            detections=tuple(detections),
            image_size=self._picture.size if self._picture is not None else None,
            question=question,
            finish_reason=answer.finish_reason,
        )
        yield self._enter(question, sequence, result)

    def _find(self, answer: Answer) -> list[Detection]:
        groups = answer.for_detector()
        if self._picture is None or not groups or not self._pipeline.has_detector:
            return []
        named = [(index, group) for index, group in groups if group.group.routing != "[GRD]"]
        found = self._decode(named, self._selecting.threshold, self._selecting.top_k)
        # A referring expression means one object: asked alone, and the best one taken.
        for index, group in groups:
            if group.group.routing == "[GRD]":
                found += self._decode([(index, group)], 0.0, 1)
        return found

    def _decode(
        self, groups: Sequence[tuple[int, AnsweredGroup]], threshold: float, top_k: int
    ) -> list[Detection]:
        if not groups or self._picture is None:
            return []
        return self._pipeline.detector.find(
            self._picture,
            np.stack([group.hidden_ND for _, group in groups]),
            [group.label for _, group in groups],
            groups=[index for index, _ in groups],
            threshold=threshold,
            top_k=top_k,
            masks=self._selecting.masks,
        )
