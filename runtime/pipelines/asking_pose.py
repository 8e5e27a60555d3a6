"""Asks for poses: object classes and keypoint names in one turn, scripted or in the model's words.

Source: VisionLLM v2 (arXiv 2406.08394), its keypoint task: the detection question and the keypoint
question in one turn, object classes with ``[DET]`` and keypoint names with ``[POSE]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from visionllm_edge.runtime.events import DoneEvent, Event, GroupEvent, PoseEvent
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.pipelines.free import Answer, write_answer
from visionllm_edge.runtime.pipelines.picture import Picture
from visionllm_edge.runtime.pipelines.pose import PoseSelecting
from visionllm_edge.runtime.pipelines.scripted import hidden_of_groups
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2
from visionllm_edge.runtime.prompts import Turn
from visionllm_edge.runtime.results import PoseResult
from visionllm_edge.runtime.task_prompts import pose_answer, pose_question

__all__ = ["find_poses"]

_DET, _POSE = "[DET]", "[POSE]"


def find_poses(
    pipeline: VisionLLMv2,
    picture: Picture,
    objects: Sequence[str],
    keypoints: Sequence[str],
    *,
    selecting: PoseSelecting,
    free: GenerationConfig | None,
) -> Iterator[Event]:
    """Poses of the named objects.

    Args:
        pipeline: the model.
        picture: where to look.
        objects: object classes.
        keypoints: normalised names of keypoints.
        selecting: which poses are wanted.
        free: let the model name objects and keypoints itself, under these options; a name that it
            leaves out is not looked for. None scripts the answer.
    """
    decoder = pipeline.pose
    question = pose_question(objects, keypoints)
    labels, names = list(objects), list(keypoints)
    with pipeline.ahead(picture, decoder) as ahead:
        if free is None:
            answer = pose_answer(objects, keypoints)
            hidden = hidden_of_groups(pipeline, picture, question, answer, when_it_fits=ahead.start)
            text = pipeline.tokenizer.decode(pipeline.tokenizer.encode(answer, bos=False))
            for index, name in enumerate((*labels, *names)):
                yield GroupEvent(_DET if index < len(labels) else _POSE, name, index)
            ahead.join()
            poses = decoder.find(
                picture,
                hidden[: len(labels)],
                hidden[len(labels) :],
                labels,
                names,
                groups=range(len(labels)),
                selecting=selecting,
            )
        else:
            written = Answer()
            sequence = pipeline.prompt((Turn(question),), picture, when_it_fits=ahead.start)
            yield from write_answer(pipeline, sequence, free, written)
            text = written.text.strip()
            found = [g for _, g in written.of("detector") if g.group.routing == _DET]
            asked = [g for _, g in written.of("pose")]
            labels += [g.label for g in found if g.label not in labels]
            names = [g.label for g in asked]
            poses = []
            if found and asked:
                ahead.join()
                poses = decoder.find(
                    picture,
                    np.stack([g.hidden_ND for g in found]),
                    np.stack([g.hidden_ND for g in asked]),
                    [g.label for g in found],
                    names,
                    groups=[labels.index(g.label) for g in found],
                    selecting=selecting,
                )
    yield from map(PoseEvent, poses)
    yield DoneEvent(
        PoseResult(
            image_size=picture.size,
            poses=tuple(poses),
            text=text,
            classes=tuple(labels),
            keypoint_names=tuple(names),
        )
    )
