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
from visionllm_edge.runtime.regions import Box
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


def _describe(model: VisionLLM, image: Rgb, workload: Workload, stream: Stream) -> object:
    height, width = image.shape[:2]
    box = Box(width // 4, height // 4, width * 3 // 4, height * 3 // 4)
    return model.describe(image, box, config=_words(workload), stream=stream)


def _pose(model: VisionLLM, image: Rgb, workload: Workload, stream: Stream) -> object:
    return model.pose(image, workload.classes[:1], stream=stream)


def _generate(model: VisionLLM, image: Rgb, workload: Workload, stream: Stream) -> object:
    return model.generate(workload.classes[0], seed=workload.seed, stream=stream)


def _edit(model: VisionLLM, image: Rgb, workload: Workload, stream: Stream) -> object:
    return model.edit(image, f"remove the {workload.classes[0]}", seed=workload.seed, stream=stream)


TASKS: tuple[BenchTask, ...] = (
    BenchTask("detect", _detect, there=lambda model: model.detector is not None),
    BenchTask("segment", _segment, there=lambda model: model.detector is not None),
    BenchTask("caption", _caption, words=True),
    BenchTask("vqa", _vqa),
    BenchTask("describe", _describe, words=True, there=lambda model: model.regions),
    BenchTask("pose", _pose, there=lambda model: model.pose is not None),
    BenchTask("generate", _generate, there=lambda model: model.generation is not None),
    BenchTask("edit", _edit, there=lambda model: model.editing is not None),
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
