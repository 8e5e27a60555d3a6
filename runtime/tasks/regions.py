"""Regions of a picture: what they show. Masks of what they point at: `DetectionTasks.segment`."""

from __future__ import annotations

from collections.abc import Sequence

from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.pipelines.regions import answer_about_region
from visionllm_edge.runtime.pipelines.requests import check_classes
from visionllm_edge.runtime.regions import Region
from visionllm_edge.runtime.results import TextResult
from visionllm_edge.runtime.tasks.base import Stream, TaskBase, last

__all__ = ["RegionTasks"]

_MAX_CLASSES = 256


class RegionTasks(TaskBase):
    """Tasks of the region encoder."""

    def describe(
        self,
        image: ImageLike,
        region: Region,
        *,
        config: GenerationConfig | None = None,
        stream: Stream | None = None,
    ) -> TextResult:
        """Say what a region shows.

        Args:
            image: a path, a Pillow image or an RGB array.
            region: a `Box`, `Point`, `Polygon`, `Scribble` or `Mask`, in pixels of the picture.
            config: generation options.
            stream: gets the events.

        Raises:
            InputError: an unusable image or region; nothing was computed.
        """
        pipeline = self._pipeline
        marked = pipeline.mark(pipeline.open(image), [region])
        events = answer_about_region(pipeline, marked, config or GenerationConfig())
        return last(events, stream, TextResult)

    def classify_region(
        self,
        image: ImageLike,
        region: Region,
        classes: Sequence[str],
        *,
        config: GenerationConfig | None = None,
        stream: Stream | None = None,
    ) -> TextResult:
        """Say which of the named classes a region shows; the answer is one of the names.

        Args:
            image: a path, a Pillow image or an RGB array.
            region: as in :meth:`describe`.
            classes: names, without commas.
            config: generation options.
            stream: gets the events.

        Raises:
            InputError: an unusable image, region or class list; nothing was computed.
            ContextError: the class list does not fit the context.
        """
        pipeline = self._pipeline
        names = check_classes(classes, limit=_MAX_CLASSES)
        marked = pipeline.mark(pipeline.open(image), [region])
        events = answer_about_region(pipeline, marked, config or GenerationConfig(), classes=names)
        return last(events, stream, TextResult)
