"""Tasks that link words to places."""

from __future__ import annotations

from typing import cast

import click

from visionllm_edge.runtime.cli.run_tasks.base import Option, Request, RunTask
from visionllm_edge.runtime.model import Mode, VisionLLM
from visionllm_edge.runtime.results import Result

__all__ = ["OPTIONS", "TASKS"]

OPTIONS: tuple[Option, ...] = (
    click.option(
        "--expression",
        multiple=True,
        help="Ground: what to find, 'the large red circle'; may be given several times.",
    ),
)


def _ground(model: VisionLLM, request: Request) -> Result:
    given = request.given
    return model.ground(
        request.picture,
        given["expression"],
        mode=cast(Mode, given["mode"]),
        masks=given["masks"],
        config=request.config,
        stream=request.stream,
    )


def _grounded_caption(model: VisionLLM, request: Request) -> Result:
    given = request.given
    return model.grounded_caption(
        request.picture,
        given["question"],
        threshold=request.threshold(0.3),
        top_k=given["top_k"],
        masks=given["masks"],
        config=request.config,
        stream=request.stream,
    )


def _semantic(model: VisionLLM, request: Request) -> Result:
    return model.semantic(
        request.picture,
        request.given["classes"].split(","),
        threshold=request.threshold(0.5),
        stream=request.stream,
    )


TASKS: tuple[RunTask, ...] = (
    RunTask("ground", _ground, needs=("expression",), takes=("mode", "masks")),
    RunTask(
        "grounded-caption",
        _grounded_caption,
        takes=("question", "threshold", "top_k", "masks"),
    ),
    RunTask("semantic", _semantic, needs=("classes",), takes=("threshold",)),
)
