"""A conversation about one picture: turns, typed events, and whatever the answers ask for.

Any turn may hold routing tokens of any decoder; :mod:`visionllm_edge.runtime.pipelines.dispatch`
says who answers them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.events import DetectionEvent, Event, ImageEvent, PoseEvent
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.llm.sequence import TokenSequence
from visionllm_edge.runtime.pipelines.conversation import Conversation
from visionllm_edge.runtime.pipelines.dispatch import Wanted, answer_groups
from visionllm_edge.runtime.pipelines.free import Answer, write_answer
from visionllm_edge.runtime.pipelines.marked import Marked
from visionllm_edge.runtime.pipelines.phrases import plain_answer
from visionllm_edge.runtime.pipelines.picture import Picture
from visionllm_edge.runtime.pipelines.regions import question_with_regions
from visionllm_edge.runtime.pipelines.requests import check_question
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2
from visionllm_edge.runtime.prompts import Segment, Turn, follow_up
from visionllm_edge.runtime.regions import Region
from visionllm_edge.runtime.results import ChatResult, Detection, ImageResult, Pose, Span

__all__ = ["ChatSession"]

_Question = str | tuple[Segment, ...]


class ChatSession(Conversation[ChatResult]):
    """Turns of one conversation.

    Args:
        pipeline: the model.
        picture: what is talked about; None for a conversation without one.
        config: generation options of every turn.
        wanted: what is wanted of each decoder.
    """

    def __init__(
        self,
        pipeline: VisionLLMv2,
        picture: Picture | None,
        *,
        config: GenerationConfig,
        wanted: Wanted,
    ) -> None:
        """Start without history; nothing is computed yet."""
        super().__init__(config)
        self._pipeline = pipeline
        self._picture = picture
        self._wanted = wanted
        self._regions = 0

    @property
    def next_region(self) -> int:
        """The number of the next turn's first region: they are counted through the conversation."""
        return self._regions + 1

    def reset(self) -> None:
        """Forget the history, its regions too; what is talked about stays."""
        super().reset()
        self._regions = 0

    def send(
        self,
        text: str,
        *,
        config: GenerationConfig | None = None,
        regions: Sequence[Region] = (),
    ) -> ChatResult:
        """Ask and wait for the whole answer; see :meth:`stream`."""
        for _ in self.stream(text, config=config, regions=regions):
            pass
        return self._turns[-1][1]

    def stream(
        self,
        text: str,
        *,
        config: GenerationConfig | None = None,
        regions: Sequence[Region] = (),
    ) -> Iterator[Event]:
        """Ask, and get the answer as it is made.

        The turn enters the history with the ``DoneEvent``; a stream that is given up before leaves
        the history as it was. What the answer's groups stand for is looked for when the words are
        complete.

        Regions of the picture stand where the text names them: ``What is in region1?``. The first
        region of a conversation is ``region1``, later turns go on counting (`next_region`); a
        single one may be called ``region``.

        Args:
            text: the question.
            config: generation options of this turn.
            regions: what the question points at, each named in the text.

        Raises:
            ContextError: history and question do not fit; raised here, not by the iterator.
            InputError: no question, or regions that cannot be used or are not named; from the
                iterator, a routing token that nothing here answers.
        """
        question = check_question(text)
        asked: _Question = question
        marked: Marked | None = None
        if regions:
            marked = self.mark(regions)
            asked, places = question_with_regions(question, len(marked), known=self._regions)
            marked = marked.pick(places)
        sequence = self._prompt(asked, marked)
        self._pipeline.session.require(len(sequence) + 1)
        return self._events(question, sequence, config or self._config, len(regions))

    def mark(self, regions: Sequence[Region]) -> Marked:
        """Check regions for a coming question; nothing is computed.

        Raises:
            InputError: they cannot be used, or there is no picture.
        """
        if self._picture is None:
            raise InputError(
                "regions: expected a conversation about a picture, got one without. "
                "Start it with a picture."
            )
        return self._pipeline.mark(self._picture, regions)

    def _prompt(self, question: _Question, marked: Marked | None) -> TokenSequence:
        if self._sequence is None:
            return self._pipeline.prompt((Turn(question),), self._picture, marked)
        return self._pipeline.extend(
            self._sequence.copy(), follow_up(question, self._pipeline.template), None, marked
        )

    def _events(
        self, question: str, sequence: TokenSequence, config: GenerationConfig, regions: int
    ) -> Iterator[Event]:
        answer = Answer()
        yield from write_answer(
            self._pipeline, sequence, config, answer, question=question, every_token=True
        )
        detections: list[Detection] = []
        poses: list[Pose] = []
        images: list[ImageResult] = []
        wanted = self._wanted.with_seed(config.seed)
        for event in answer_groups(self._pipeline, self._picture, answer, wanted):
            if isinstance(event, DetectionEvent):
                detections.append(event.detection)
            elif isinstance(event, PoseEvent):
                poses.append(event.pose)
            elif isinstance(event, ImageEvent):
                images.append(event.image)
            yield event
        labels = [group.label for group in answer.groups]
        words, phrases = plain_answer(
            self._pipeline.tokenizer, answer.ids, labels, self._pipeline.routing_ids
        )
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
            poses=tuple(poses),
            images=tuple(images),
            words=words,
            phrases=phrases,
        )
        self._regions += regions
        yield self._enter(question, sequence, result)
