"""Objects by name: detection and segmentation."""

from __future__ import annotations

from collections.abc import Sequence

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.pipelines.free import find_free
from visionllm_edge.runtime.pipelines.regions import find_regions
from visionllm_edge.runtime.pipelines.requests import check_classes
from visionllm_edge.runtime.pipelines.scripted import find_scripted
from visionllm_edge.runtime.prompts import (
    DETECTION_QUESTIONS,
    SEGMENTATION_QUESTIONS,
    scripted_answer,
)
from visionllm_edge.runtime.regions import Region
from visionllm_edge.runtime.results import DetectionResult
from visionllm_edge.runtime.tasks.base import Mode, Stream, TaskBase, check_mode, last, selecting

__all__ = ["DetectionTasks"]


class DetectionTasks(TaskBase):
    """Tasks of the object decoder."""

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
        names = check_classes(classes, limit=pipeline.detector.spec.max_text_len)
        wanted = selecting(threshold, top_k, masks)
        routing = pipeline.check_routing(routing)
        questions = SEGMENTATION_QUESTIONS if routing == "[SEG]" else DETECTION_QUESTIONS
        question = questions[0].format(classes=", ".join(names))
        if check_mode(mode, ("scripted", "listed", "free")) == "scripted":
            events = find_scripted(
                pipeline,
                pipeline.open(image),
                question=question,
                answer=scripted_answer(names, routing),
                labels=names,
                routing=routing,
                selecting=wanted,
            )
        else:
            events = find_free(
                pipeline,
                pipeline.open(image),
                config or GenerationConfig(),
                question=question,
                labels=names,
                selecting=wanted,
                listed_by=routing if mode == "listed" else None,
            )
        return last(events, stream, DetectionResult)

    def segment(
        self,
        image: ImageLike,
        classes: Sequence[str] = (),
        *,
        regions: Sequence[Region] | None = None,
        mode: Mode = "scripted",
        threshold: float = 0.3,
        top_k: int = 100,
        routing: str = "[DET]",
        config: GenerationConfig | None = None,
        stream: Stream | None = None,
    ) -> DetectionResult:
        """Find every object of the named classes, with masks. Options as in :meth:`detect`.

        With ``regions`` in place of classes (interactive segmentation): find the one object that
        each region points at, whatever its score. The detections are called ``region1``,
        ``region2``, ... in the order of the regions; only ``stream`` concerns them besides.

        Args:
            image: a path, a Pillow image or an RGB array.
            classes: as in :meth:`detect`.
            regions: `Box`, `Point`, `Polygon`, `Scribble` or `Mask`, in pixels of the picture.
            mode: as in :meth:`detect`.
            threshold: as in :meth:`detect`.
            top_k: as in :meth:`detect`.
            routing: as in :meth:`detect`.
            config: as in :meth:`detect`.
            stream: gets the events.

        Raises:
            InputError: as :meth:`detect`; an unusable region, or classes beside regions.
            ContextError: the class list or the regions do not fit the context.
        """
        if regions is not None:
            if classes:
                raise InputError(
                    "segment: expected classes or regions, got both. Ask one after the other."
                )
            _ = self._pipeline.detector  # refuse a bundle without one before any work
            marked = self._pipeline.mark(self._pipeline.open(image), regions)
            return last(find_regions(self._pipeline, marked), stream, DetectionResult)
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
