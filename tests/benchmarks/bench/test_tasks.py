"""Every task asks the model as a user would, and a bundle offers those that it can do."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest

from visionllm_edge.benchmarks.bench.measurement import Workload
from visionllm_edge.benchmarks.bench.tasks import TASKS, pictures, tasks_of
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.manifest import LlmSpec, ModelSpec, PoseSpec
from visionllm_edge.runtime.model import VisionLLM

WORKLOAD = Workload((96, 160), ("circle", "star"), 5, 3, 0.02, 1.0)
PLAIN = ModelSpec(LlmSpec(8, 1, 1, 8, 20, 64), {}, "tables/embed_tokens.npy")


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_task_calls_the_method_of_its_name(task: Any) -> None:
    model = create_autospec(VisionLLM, instance=True)
    image = next(pictures(WORKLOAD))
    task.ask(model, image, WORKLOAD, print)
    method = getattr(model, task.name)
    method.assert_called_once()
    assert method.call_args.kwargs["stream"] is print
    assert len(model.method_calls) == 1


def test_words_have_a_fixed_length() -> None:
    model = create_autospec(VisionLLM, instance=True)
    caption = next(task for task in TASKS if task.name == "caption")
    caption.ask(model, np.zeros((8, 8, 3), np.uint8), WORKLOAD, print)
    config = model.caption.call_args.kwargs["config"]
    assert config.max_new_tokens == config.min_new_tokens == 5


def test_pictures_are_a_function_of_the_seed() -> None:
    first, second = pictures(WORKLOAD), pictures(WORKLOAD)
    one, two = next(first), next(first)
    assert one.shape == (96, 160, 3) and not np.array_equal(one, two)
    np.testing.assert_array_equal(one, next(second))
    other = next(pictures(dataclasses.replace(WORKLOAD, seed=4)))
    assert not np.array_equal(one, other)


def test_a_bundle_offers_what_it_has() -> None:
    assert [task.name for task in tasks_of(PLAIN, ())] == ["caption", "vqa"]
    pose = PoseSpec(((64, 64),), 64, 64, 32, 100, 68, 10)
    richer = dataclasses.replace(PLAIN, regions=True, pose=pose)
    assert [task.name for task in tasks_of(richer, ())] == ["caption", "vqa", "describe", "pose"]
    with pytest.raises(InputError, match="lacks what pose needs"):
        tasks_of(PLAIN, ("pose",))
    with pytest.raises(InputError, match="expected a task out of detect"):
        tasks_of(PLAIN, ("dance",))
