"""Who answers the groups of an answer: each routing token leads to its decoder.

1. ``[DET]``, ``[SEG]``: the detector, all groups of the answer together; of those that name a
   region (``region1``) each gets its best object, whatever its score.
2. ``[GRD]``: the detector, each group alone, and the best object whatever its score.
3. ``[POSE]``: the keypoint decoder, with the answer's ``[DET]`` groups as its object classes.
4. ``[GEN]``, ``[EDIT]``: the image makers, one picture for each group.

The groups of one answer may lead to several decoders, in any order. Their hidden states were kept
when the answer was written, so nothing here runs the language model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.diffusion.image_maker import ImageOptions
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.events import DetectionEvent, Event, PoseEvent
from visionllm_edge.runtime.pipelines.free import Answer, AnsweredGroup
from visionllm_edge.runtime.pipelines.images import make_picture
from visionllm_edge.runtime.pipelines.picture import Picture
from visionllm_edge.runtime.pipelines.pose import PoseSelecting
from visionllm_edge.runtime.pipelines.scripted import Selecting
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2
from visionllm_edge.runtime.results import Detection, Pose

__all__ = ["Wanted", "answer_groups"]

# As `task_prompts.region_name` writes it.
_REGION = re.compile(r"region\d*")
_Indexed = Sequence[tuple[int, AnsweredGroup]]


@dataclass(frozen=True)
class Wanted:
    """What is wanted of each decoder."""

    objects: Selecting
    poses: PoseSelecting = field(default_factory=PoseSelecting)
    images: ImageOptions = field(default_factory=ImageOptions)

    def with_seed(self, seed: int | None) -> Wanted:
        """The same with this seed for pictures, where they have none of their own."""
        if seed is None or self.images.seed is not None:
            return self
        return replace(self, images=replace(self.images, seed=seed))


def answer_groups(
    pipeline: VisionLLMv2, picture: Picture | None, answer: Answer, wanted: Wanted
) -> Iterator[Event]:
    """Events for everything that an answer's groups stand for.

    Detections by descending score over all groups, then poses, then pictures in textual order.
    Objects and poses need a picture to look at: without one there are none.

    Raises:
        InputError: a picture is to be edited where there is none, or more classes or keypoints are
            named than a decoder has slots.
    """
    if picture is not None and pipeline.has("detector"):
        found = _objects(pipeline, picture, answer.of("detector"), wanted.objects)
        yield from map(DetectionEvent, sorted(found, key=lambda one: -one.score))
    if picture is not None and pipeline.has("pose"):
        yield from map(PoseEvent, _poses(pipeline, picture, answer, wanted.poses))
    for group in answer.groups:
        if group.group.decoder in ("generate", "edit"):
            yield from _picture(pipeline, picture, group, wanted.images)


def _objects(
    pipeline: VisionLLMv2, picture: Picture, groups: _Indexed, wanted: Selecting
) -> list[Detection]:
    def find(
        some: _Indexed, threshold: float, top_k: int, *, best_of_each: bool = False
    ) -> list[Detection]:
        return pipeline.detector.find(
            picture,
            _hidden(some),
            [group.label for _, group in some],
            groups=[index for index, _ in some],
            threshold=threshold,
            top_k=top_k,
            masks=wanted.masks,
            best_of_each=best_of_each,
        )

    listed = [(index, group) for index, group in groups if group.group.routing != "[GRD]"]
    pointed = [one for one in listed if _REGION.fullmatch(one[1].label)]
    named = [one for one in listed if not _REGION.fullmatch(one[1].label)]
    found = find(named, wanted.threshold, wanted.top_k) if named else []
    found += find(pointed, 0.0, len(pointed), best_of_each=True) if pointed else []
    for index, group in groups:
        if group.group.routing == "[GRD]":
            # A referring expression means one object: asked alone, and the best one taken.
            found += find([(index, group)], 0.0, 1)
    return found


def _poses(
    pipeline: VisionLLMv2, picture: Picture, answer: Answer, wanted: PoseSelecting
) -> list[Pose]:
    keypoints = answer.of("pose")
    objects = [one for one in answer.of("detector") if one[1].group.routing == "[DET]"]
    if not keypoints or not objects:
        return []
    return pipeline.pose.find(
        picture,
        _hidden(objects),
        _hidden(keypoints),
        [group.label for _, group in objects],
        [group.label for _, group in keypoints],
        groups=[index for index, _ in objects],
        selecting=wanted,
    )


def _picture(
    pipeline: VisionLLMv2, picture: Picture | None, group: AnsweredGroup, wanted: ImageOptions
) -> Iterator[Event]:
    maker = pipeline.maker(group.group.decoder)
    source = None
    if maker.edits:
        if picture is None:
            raise InputError(
                f"answer: the model wrote {group.group.routing}, which changes a picture; this "
                "conversation is about none. Start it with a picture."
            )
        source = picture.rgb
    plan = maker.plan(wanted, None if source is None else (source.shape[0], source.shape[1]))
    yield from make_picture(maker, group.hidden_ND, plan, words=group.label, source=source)


def _hidden(groups: _Indexed) -> NDArray[np.float32]:
    return np.stack([group.hidden_ND for _, group in groups])
