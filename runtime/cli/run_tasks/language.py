"""Tasks of the language model about a picture."""

from __future__ import annotations

import click

from visionllm_edge.runtime.cli.run_tasks.base import Option, Request, RunTask
from visionllm_edge.runtime.cli.run_tasks.regions import POINTERS, given_regions
from visionllm_edge.runtime.events import DoneEvent
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.results import Result

__all__ = ["OPTIONS", "TASKS", "split_choices"]

OPTIONS: tuple[Option, ...] = (
    click.option("--question", help="Vqa, chat: what to answer."),
    click.option("--choices", help="Vqa, text: the only answers allowed, with commas, 'yes,no'."),
)


def split_choices(choices: str | None) -> list[str] | None:
    """The allowed answers, if the answer is held to some."""
    return None if choices is None else choices.split(",")


def _caption(model: VisionLLM, request: Request) -> Result:
    return model.caption(request.picture, config=request.config, stream=request.stream)


def _vqa(model: VisionLLM, request: Request) -> Result:
    return model.vqa(
        request.picture,
        request.given["question"],
        choices=split_choices(request.given["choices"]),
        config=request.config,
        stream=request.stream,
    )


def _chat(model: VisionLLM, request: Request) -> Result:
    given = request.given
    session = model.chat(
        request.picture,
        config=request.config,
        threshold=request.threshold(0.3),
        top_k=given["top_k"],
        masks=given["masks"],
    )
    for event in session.stream(given["question"], regions=given_regions(given)):
        request.stream(event)
        if isinstance(event, DoneEvent):
            return event.result
    raise AssertionError("a stream ends with a DoneEvent")


TASKS: tuple[RunTask, ...] = (
    RunTask("caption", _caption),
    RunTask("vqa", _vqa, needs=("question",), takes=("choices",)),
    RunTask("chat", _chat, needs=("question",), takes=("threshold", "top_k", "masks", *POINTERS)),
)
