"""Keypoints."""

from __future__ import annotations

from collections.abc import Sequence

from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.keypoints import keypoint_names
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.pipelines.asking_pose import find_poses
from visionllm_edge.runtime.pipelines.pose import BENCHMARK, PoseSelecting
from visionllm_edge.runtime.pipelines.requests import check_classes
from visionllm_edge.runtime.results import PoseResult
from visionllm_edge.runtime.tasks.base import Mode, Stream, TaskBase, check_mode, last

__all__ = ["PoseTasks"]


class PoseTasks(TaskBase):
    """Tasks of the keypoint decoder."""

    def pose(
        self,
        image: ImageLike,
        objects: Sequence[str],
        keypoints: str | Sequence[str] = "coco17",
        *,
        mode: Mode = "scripted",
        threshold: float = 0.1,
        nms_iou: float | None = 0.9,
        top_k: int = 100,
        benchmark: bool = False,
        config: GenerationConfig | None = None,
        stream: Stream | None = None,
    ) -> PoseResult:
        """Find every object of the named classes, and the places of keypoints on it.

        Args:
            image: a path, a Pillow image or an RGB array.
            objects: names, ``person`` or ``red person``; without commas.
            keypoints: a preset (``coco17``, ``ap10k17``, ``face68``) or names; at most 68. Names
                are written in lower case and without punctuation, ``Left_Eye`` as ``left eye``.
            mode: ``scripted`` takes the names as the answer's words and generates nothing;
                ``free`` lets the model write the answer.
            threshold: smallest score of an instance, 0..1.
            nms_iou: an instance whose box overlaps a better one by more than this is left out, of
                whatever class it is; None leaves none out.
            top_k: how many instances at most.
            benchmark: measure as the authors do: no threshold, nothing left out but beyond top_k.
            config: generation options of free mode.
            stream: gets the events.

        Raises:
            InputError: an unusable image, name or option, or a bundle without keypoint decoder;
                nothing was computed.
            ContextError: the names do not fit the context.
        """
        pipeline = self._pipeline
        spec = pipeline.pose.spec
        wanted = PoseSelecting(threshold, nms_iou, top_k)
        if benchmark:
            wanted = PoseSelecting(BENCHMARK.threshold, BENCHMARK.iou, top_k)
        classes = check_classes(objects, limit=spec.max_objects)
        names = keypoint_names(keypoints, limit=spec.max_keypoints)
        scripted = check_mode(mode, ("scripted", "free")) == "scripted"
        events = find_poses(
            pipeline,
            pipeline.open(image),
            classes,
            names,
            selecting=wanted,
            free=None if scripted else config or GenerationConfig(),
        )
        return last(events, stream, PoseResult)
