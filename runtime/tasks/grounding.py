"""Words linked to places: several expressions, captions with phrases, a class per pixel."""

from __future__ import annotations

from collections.abc import Sequence

from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.pipelines.grounding import (
    caption_with_phrases,
    find_expressions,
    label_pixels,
)
from visionllm_edge.runtime.pipelines.requests import (
    check_classes,
    check_expressions,
    check_question,
)
from visionllm_edge.runtime.results import (
    DetectionResult,
    GroundedCaptionResult,
    SemanticResult,
)
from visionllm_edge.runtime.task_prompts import GROUNDED_CAPTION_QUESTIONS
from visionllm_edge.runtime.tasks.base import (
    Mode,
    Stream,
    TaskBase,
    check_mode,
    last,
    selecting,
)

__all__ = ["GroundingTasks"]


class GroundingTasks(TaskBase):
    """Tasks that link words to places."""

    def ground(
        self,
        image: ImageLike,
        expression: str | Sequence[str],
        *,
        mode: Mode = "scripted",
        masks: bool = False,
        config: GenerationConfig | None = None,
        stream: Stream | None = None,
    ) -> DetectionResult:
        """Find the one object that an expression refers to: the best box, whatever its score.

        Args:
            image: a path, a Pillow image or an RGB array.
            expression: one line, for example ``the large red circle on the left``, or several
                lines; a detection's ``group`` counts in them.
            mode: ``scripted`` or ``free``, as in :meth:`detect`. In free mode the model may answer
                an expression without naming an object, which then has no detection.
            masks: also give a mask for each.
            config: generation options of free mode.
            stream: gets the events.

        Raises:
            InputError: an unusable image or expression; nothing was computed.
            ContextError: an expression does not fit the context.
        """
        pipeline = self._pipeline
        _ = pipeline.detector  # refuse a bundle without one before any work
        asked = check_expressions(expression)
        scripted = check_mode(mode, ("scripted", "free")) == "scripted"
        events = find_expressions(
            pipeline,
            pipeline.open(image),
            asked,
            masks=masks,
            free=None if scripted else config or GenerationConfig(),
        )
        return last(events, stream, DetectionResult)

    def grounded_caption(
        self,
        image: ImageLike,
        question: str | None = None,
        *,
        threshold: float = 0.3,
        top_k: int = 100,
        masks: bool = False,
        config: GenerationConfig | None = None,
        stream: Stream | None = None,
    ) -> GroundedCaptionResult:
        """Describe a picture, with every object of the description found in it.

        Args:
            image: a path, a Pillow image or an RGB array.
            question: what to describe; None asks for the whole picture.
            threshold: smallest score of a detection, 0..1.
            top_k: how many detections at most, over all phrases.
            masks: also give masks.
            config: generation options.
            stream: gets the events.

        Raises:
            InputError: an unusable image, question or option; nothing was computed.
            ContextError: the question does not fit the context.
        """
        pipeline = self._pipeline
        _ = pipeline.detector
        events = caption_with_phrases(
            pipeline,
            pipeline.open(image),
            GROUNDED_CAPTION_QUESTIONS[0] if question is None else check_question(question),
            config or GenerationConfig(),
            selecting(threshold, top_k, masks),
        )
        return last(events, stream, GroundedCaptionResult)

    def semantic(
        self,
        image: ImageLike,
        classes: Sequence[str],
        *,
        threshold: float = 0.5,
        stream: Stream | None = None,
    ) -> SemanticResult:
        """Give every pixel one of the named classes, or none.

        Args:
            image: a path, a Pillow image or an RGB array.
            classes: names, ``person`` or ``red circle``; at most 256, without commas.
            threshold: a pixel belongs to its best class if that class's score there, the sum over
                all queries, is at least this; 0 gives every pixel a class, as the benchmark does.
            stream: gets the events.

        Raises:
            InputError: an unusable image, class list or threshold; nothing was computed.
            ContextError: the class list does not fit the context.
        """
        pipeline = self._pipeline
        names = check_classes(classes, limit=pipeline.detector.spec.max_text_len)
        wanted = selecting(threshold, 1, masks=True)
        events = label_pixels(pipeline, pipeline.open(image), names, threshold=wanted.threshold)
        return last(events, stream, SemanticResult)
