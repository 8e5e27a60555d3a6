"""The public face: a loaded bundle that answers.

    model = VisionLLM.load("bundle")
    result = model.detect("photo.jpg", ["red circle", "person"])
    result.draw("photo.jpg").save("found.png")

Every task takes ``stream``, a function that gets the typed events as they happen. A model is for
one thread at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.events import DoneEvent, Event
from visionllm_edge.runtime.images import ImageLike, load_image
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.pipelines.chat import ChatSession
from visionllm_edge.runtime.pipelines.free import answer_text, find_free
from visionllm_edge.runtime.pipelines.loading import LoadOptions, load_pipeline
from visionllm_edge.runtime.pipelines.requests import (
    check_classes,
    check_expression,
    check_question,
)
from visionllm_edge.runtime.pipelines.scripted import Selecting, find_scripted
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2
from visionllm_edge.runtime.prompts import (
    CAPTION_QUESTIONS,
    DETECTION_QUESTIONS,
    GROUNDING_QUESTIONS,
    SEGMENTATION_QUESTIONS,
    SHORT_ANSWER,
    scripted_answer,
    scripted_grounding,
)
from visionllm_edge.runtime.results import DetectionResult, TextResult

__all__ = ["Mode", "Stream", "VisionLLM"]

Mode = Literal["scripted", "listed", "free"]
Stream = Callable[[Event], object]
R = TypeVar("R", DetectionResult, TextResult)


class VisionLLM:
    """A model that is ready to answer. Made by :meth:`load`.

    Repeated questions about a picture reuse its features and the common beginning of the prompt.
    """

    def __init__(self, pipeline: VisionLLMv2) -> None:
        """Take a pipeline; users call :meth:`load`."""
        self._pipeline = pipeline

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        verify: bool = True,
        context: int | None = None,
        buckets: int = 2,
    ) -> VisionLLM:
        """Load a bundle.

        Args:
            path: the bundle's folder.
            threads: for each operator; None leaves it to the backend.
            verify: hash every file first.
            context: positions that a conversation may have, the picture's among them; None for
                all that the model has. A smaller context takes less memory.
            buckets: how many picture sizes of the detector stay loaded.

        Raises:
            BundleError: not a bundle, or not as it was compiled.
            BackendError: its backend cannot load it.
            MemoryLimitError: it needs more memory than the machine has free.
        """
        options = LoadOptions(threads=threads, context=context, buckets=buckets)
        return cls.from_bundle(Bundle.open(path, verify=verify), options)

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: LoadOptions | None = None) -> VisionLLM:
        """As :meth:`load`, of a bundle that is open already."""
        return cls(load_pipeline(bundle, options))

    def detect(
        self,
        image: ImageLike,
        classes: Sequence[str],
        *,
        mode: Mode = "scripted",
        threshold: float = 0.3,
        top_k: int = 100,
        masks: bool = False,
        routing: str = "[DET]",
        config: GenerationConfig | None = None,
        stream: Stream | None = None,
    ) -> DetectionResult:
        """Find every object of the named classes.

        Args:
            image: a path, a Pillow image or an RGB array.
            classes: names, ``person`` or ``red circle``; at most 256, without commas.
            mode: ``scripted`` takes the class list as the answer's words and generates nothing;
                ``listed`` lets the model say which of the classes are there, in its own order, and
                nothing else; ``free`` lets it write the answer.
            threshold: smallest score, 0..1.
            top_k: how many detections at most.
            masks: also give a mask for each detection.
            routing: the token that asks for objects; ``[SEG]`` also changes the question.
            config: generation options of free mode.
            stream: gets the events.

        Raises:
            InputError: an unusable image, class list or option; nothing was computed.
            ContextError: the class list does not fit the context.
        """
        pipeline = self._pipeline
        names = check_classes(classes, limit=pipeline.detector.settings.max_text_len)
        selecting = _selecting(threshold, top_k, masks)
        routing = pipeline.check_routing(routing)
        questions = SEGMENTATION_QUESTIONS if routing == "[SEG]" else DETECTION_QUESTIONS
        question = questions[0].format(classes=", ".join(names))
        if _checked(mode, ("scripted", "listed", "free")) == "scripted":
            events = find_scripted(
                pipeline,
                pipeline.open(image),
                question=question,
                answer=scripted_answer(names, routing),
                labels=names,
                routing=routing,
                selecting=selecting,
            )
        else:
            events = find_free(
                pipeline,
                pipeline.open(image),
                config or GenerationConfig(),
                question=question,
                labels=names,
                expression=None,
                selecting=selecting,
                listed_by=routing if mode == "listed" else None,
            )
        return _last(events, stream, DetectionResult)

    def segment(
        self,
        image: ImageLike,
        classes: Sequence[str],
        *,
        mode: Mode = "scripted",
        threshold: float = 0.3,
        top_k: int = 100,
        routing: str = "[DET]",
        config: GenerationConfig | None = None,
        stream: Stream | None = None,
    ) -> DetectionResult:
        """Find every object of the named classes, with masks. Options as in :meth:`detect`."""
        return self.detect(
            image,
            classes,
            mode=mode,
            threshold=threshold,
            top_k=top_k,
            masks=True,
            routing=routing,
            config=config,
            stream=stream,
        )

    def ground(
        self,
        image: ImageLike,
        expression: str,
        *,
        mode: Mode = "scripted",
        masks: bool = False,
        config: GenerationConfig | None = None,
        stream: Stream | None = None,
    ) -> DetectionResult:
        """Find the one object that an expression refers to: the best box, whatever its score.

        Args:
            image: a path, a Pillow image or an RGB array.
            expression: one line, for example ``the large red circle on the left``.
            mode: ``scripted`` or ``free``, as in :meth:`detect`.
            masks: also give its mask.
            config: generation options of free mode.
            stream: gets the events.

        Raises:
            InputError: an unusable image or expression; nothing was computed.
            ContextError: the expression does not fit the context.
        """
        pipeline = self._pipeline
        _ = pipeline.detector  # refuse a bundle without one before any work
        expression = check_expression(expression)
        selecting = Selecting(0.0, 1, masks)
        question = GROUNDING_QUESTIONS[0].format(expression=expression)
        if _checked(mode, ("scripted", "free")) == "scripted":
            events = find_scripted(
                pipeline,
                pipeline.open(image),
                question=question,
                answer=scripted_grounding(),
                labels=(expression,),
                routing=pipeline.check_routing("[GRD]"),
                selecting=selecting,
            )
        else:
            events = find_free(
                pipeline,
                pipeline.open(image),
                config or GenerationConfig(),
                question=question,
                labels=(expression,),
                expression=expression,
                selecting=selecting,
            )
        return _last(events, stream, DetectionResult)

    def caption(
        self,
        image: ImageLike,
        *,
        config: GenerationConfig | None = None,
        stream: Stream | None = None,
    ) -> TextResult:
        """Describe a picture in one sentence.

        Raises:
            InputError: an unusable image.
        """
        return self._answer(image, CAPTION_QUESTIONS[0], None, config, stream)

    def vqa(
        self,
        image: ImageLike,
        question: str,
        *,
        short: bool = True,
        choices: Sequence[str] | None = None,
        config: GenerationConfig | None = None,
        stream: Stream | None = None,
    ) -> TextResult:
        """Answer a question about a picture.

        Args:
            image: a path, a Pillow image or an RGB array.
            question: plain text.
            short: ask for a short answer, as the benchmarks do.
            choices: the only answers that are allowed, for example ``["yes", "no"]``.
            config: generation options.
            stream: gets the events.

        Raises:
            InputError: an unusable image, no question, or unusable choices.
            ContextError: the question does not fit the context; nothing was computed.
        """
        question = check_question(question)
        prompt = f"{question} {SHORT_ANSWER}" if short else question
        return self._answer(image, prompt, question, config, stream, choices)

    def vqa_many(
        self,
        image: ImageLike,
        questions: Sequence[str],
        *,
        short: bool = True,
        choices: Sequence[str] | None = None,
        config: GenerationConfig | None = None,
    ) -> list[TextResult]:
        """Answer several questions about one picture, each as if it were the only one.

        Picture and prompt up to the question are computed once; the cache goes back to there for
        the next question. The questions are answered one after the other, so the weights are read
        once per token of every answer.

        Args:
            image: a path, a Pillow image or an RGB array.
            questions: plain texts.
            short: as in :meth:`vqa`.
            choices: as in :meth:`vqa`, the same for every question.
            config: generation options of every answer.

        Raises:
            InputError: as :meth:`vqa`, before anything is computed.
            ContextError: as :meth:`vqa`, for the first question that does not fit.
        """
        for question in questions:
            check_question(question)
        picture = load_image(image)
        return [
            self.vqa(picture, question, short=short, choices=choices, config=config)
            for question in questions
        ]

    def chat(
        self,
        image: ImageLike | None = None,
        *,
        config: GenerationConfig | None = None,
        threshold: float = 0.3,
        top_k: int = 100,
        masks: bool = False,
    ) -> ChatSession:
        """Start a conversation, usually about a picture.

        Args:
            image: a path, a Pillow image or an RGB array; None to talk without one.
            config: generation options of every turn.
            threshold: smallest score of detections.
            top_k: how many detections at most.
            masks: also give masks.

        Raises:
            InputError: an unusable image or option.
        """
        return ChatSession(
            self._pipeline,
            self._pipeline.open(image) if image is not None else None,
            config=config or GenerationConfig(),
            selecting=_selecting(threshold, top_k, masks),
        )

    def _answer(
        self,
        image: ImageLike,
        prompt: str,
        question: str | None,
        config: GenerationConfig | None,
        stream: Stream | None,
        choices: Sequence[str] | None = None,
    ) -> TextResult:
        pipeline = self._pipeline
        events = answer_text(
            pipeline,
            pipeline.open(image),
            prompt,
            config or GenerationConfig(),
            question=question,
            choices=choices,
        )
        return _last(events, stream, TextResult)


def _checked(mode: str, known: tuple[str, ...]) -> str:
    if mode not in known:
        raise InputError(f"mode: expected {' or '.join(known)}, got {mode!r}. Change the option.")
    return mode


def _selecting(threshold: float, top_k: int, masks: bool) -> Selecting:
    if not 0.0 <= threshold <= 1.0:
        raise InputError(f"threshold: expected 0 to 1, got {threshold}. Change the option.")
    if top_k < 1:
        raise InputError(f"top_k: expected at least 1, got {top_k}. Change the option.")
    return Selecting(threshold, top_k, masks)


def _last(events: Iterator[Event], stream: Stream | None, kind: type[R]) -> R:
    for event in events:
        if stream is not None:
            stream(event)
        if isinstance(event, DoneEvent):
            assert isinstance(event.result, kind)
            return event.result
    raise AssertionError("a stream ends with a DoneEvent")
