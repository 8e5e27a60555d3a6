"""What every task stands on: the pipeline, and the end of a stream of events."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Literal, TypeVar

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.events import DoneEvent, Event
from visionllm_edge.runtime.pipelines.scripted import Selecting
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2
from visionllm_edge.runtime.results import Result

__all__ = ["Mode", "Stream", "TaskBase", "check_mode", "last", "selecting"]

Mode = Literal["scripted", "listed", "free"]
Stream = Callable[[Event], object]
R = TypeVar("R", bound=Result)


class TaskBase:
    """Holds the pipeline."""

    def __init__(self, pipeline: VisionLLMv2) -> None:
        """Take a pipeline; users call ``VisionLLM.load``."""
        self._pipeline = pipeline


def check_mode(mode: str, known: tuple[str, ...]) -> str:
    """A way to ask that the task has.

    Raises:
        InputError: it has not.
    """
    if mode not in known:
        raise InputError(f"mode: expected {' or '.join(known)}, got {mode!r}. Change the option.")
    return mode


def selecting(threshold: float, top_k: int, masks: bool) -> Selecting:
    """Which detections are wanted.

    Raises:
        InputError: a threshold outside 0..1, or no detections at all.
    """
    if not 0.0 <= threshold <= 1.0:
        raise InputError(f"threshold: expected 0 to 1, got {threshold}. Change the option.")
    if top_k < 1:
        raise InputError(f"top_k: expected at least 1, got {top_k}. Change the option.")
    return Selecting(threshold, top_k, masks)


def last(events: Iterator[Event], stream: Stream | None, kind: type[R]) -> R:
    """Run a task to its end, hand on its events, and return its result.

    A listener that raises ends the task: nothing of it goes on.
    """
    try:
        for event in events:
            if stream is not None:
                stream(event)
            if isinstance(event, DoneEvent):
                assert isinstance(event.result, kind)
                return event.result
    finally:
        if isinstance(events, Generator):
            events.close()
    raise AssertionError("a stream ends with a DoneEvent")
