"""The tasks that a bundle is timed on, each over the call that a user makes.

Every request gets a picture that the model has not seen, so nothing is reused from one request to
the next; words have a fixed length, so that requests cost the same. A new task is one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.benchmarks.bench.measurement import Workload
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.manifest import ModelSpec
from visionllm_edge.runtime.model import Stream, VisionLLM
from visionllm_edge.runtime.shapes_world import make_scene

__all__ = ["TASKS", "BenchTask", "Rgb", "pictures", "tasks_of"]

Rgb = NDArray[np.uint8]

# "bench" in ASCII, so that no evaluation and no training draws the same pictures.
_STREAM = 0x62656E6368
_QUESTION = "What is in the picture?"
_LARGEST_SCENE_PX = 192


@dataclass(frozen=True)
class BenchTask:
    """One task.

    Attributes:
        name: as in ``visionllm-edge run --task``.
        ask: makes one request: model, picture, workload, and the function that gets its events.
        words: whether the answer is made of words, so that time per token means something.
        there: whether a bundle has what the task needs.
    """

    name: str
    ask: Callable[[VisionLLM, Rgb, Workload, Stream], object]
    words: bool = False
    there: Callable[[ModelSpec], bool] = lambda model: True


def pictures(workload: Workload) -> Iterator[Rgb]:
    """Endless pictures of the workload's size, a function of its seed.

    Scenes of the shapes world are made small and enlarged: what is in a picture hardly changes
    what it costs.
    """
    height, width = workload.image_px
    share = min(1.0, _LARGEST_SCENE_PX / max(height, width))
    small = max(32, round(height * share)), max(32, round(width * share))
    index = 0
    while True:
        rng = np.random.default_rng([_STREAM, workload.seed, index])
        image = make_scene(rng, width=small[1], height=small[0], max_items=3).image
        rows = np.arange(height) * small[0] // height
        columns = np.arange(width) * small[1] // width
        yield np.ascontiguousarray(image[rows][:, columns])
        index += 1


def _words(workload: Workload) -> GenerationConfig:
    count = workload.output_tokens
    return GenerationConfig(max_new_tokens=count, min_new_tokens=count)


def _detect(model: VisionLLM, image: Rgb, workload: Workload, stream: Stream) -> object:
    return model.detect(image, workload.classes, stream=stream)


def _segment(model: VisionLLM, image: Rgb, workload: Workload, stream: Stream) -> object:
    return model.segment(image, workload.classes, stream=stream)


def _caption(model: VisionLLM, image: Rgb, workload: Workload, stream: Stream) -> object:
    return model.caption(image, config=_words(workload), stream=stream)


def _vqa(model: VisionLLM, image: Rgb, workload: Workload, stream: Stream) -> object:
    one = replace(workload, output_tokens=1)
    return model.vqa(image, _QUESTION, config=_words(one), stream=stream)


def _has_detector(model: ModelSpec) -> bool:
    return model.detector is not None


TASKS: tuple[BenchTask, ...] = (
    BenchTask("detect", _detect, there=_has_detector),
    BenchTask("segment", _segment, there=_has_detector),
    BenchTask("caption", _caption, words=True),
    BenchTask("vqa", _vqa),
)


def tasks_of(model: ModelSpec, names: tuple[str, ...]) -> tuple[BenchTask, ...]:
    """The tasks to time: those that are named, or all that the bundle has.

    Raises:
        InputError: a name that is not known, or that the bundle cannot do.
    """
    known = {task.name: task for task in TASKS}
    for name in names:
        if name not in known:
            raise InputError(
                f"bench: expected a task out of {', '.join(known)}, got {name!r}. Change --task."
            )
        if not known[name].there(model):
            raise InputError(
                f"bench: this bundle lacks what {name} needs. Leave --task {name} out."
            )
    return tuple(task for task in TASKS if task.there(model) and (not names or task.name in names))
