"""Tasks of the diffusion chains."""

from __future__ import annotations

import click

from visionllm_edge.runtime.cli.run_tasks.base import Option, Request, RunTask
from visionllm_edge.runtime.decoder_specs import SCHEDULERS
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.results import Result

__all__ = ["OPTIONS", "TASKS"]


def _size(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """``512`` or ``768x512``, width first as pictures are spoken of, to (height, width)."""
    if value is None:
        return None
    sides = value.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() for side in sides):
        raise click.BadParameter(f"expected SIDE or WIDTHxHEIGHT in pixels, got {value!r}.")
    return int(sides[-1]), int(sides[0])


OPTIONS: tuple[Option, ...] = (
    click.option("--instruction", help="Edit: what to change, 'make the red circle blue'."),
    click.option(
        "--size", callback=_size, help="Generate, edit: pixels of the picture, 512 or WIDTHxHEIGHT."
    ),
    click.option(
        "--steps", type=click.IntRange(min=1), help="Generate, edit: steps of the scheduler."
    ),
    click.option(
        "--guidance",
        type=click.FloatRange(min=0.0),
        help="Generate, edit: how strictly the words are followed; 1 is plainly.",
    ),
    click.option(
        "--image-guidance",
        type=click.FloatRange(min=0.0),
        help="Edit: how closely the picture is kept.",
    ),
    click.option(
        "--scheduler",
        type=click.Choice(SCHEDULERS),
        help="Generate, edit: another sampler than the model's own.",
    ),
)


def _generate(model: VisionLLM, request: Request) -> Result:
    given = request.given
    return model.generate(
        given["prompt"],
        size=given["size"],
        steps=given["steps"],
        guidance=given["guidance"],
        seed=request.config.seed,
        scheduler=given["scheduler"],
        stream=request.stream,
    )


def _edit(model: VisionLLM, request: Request) -> Result:
    given = request.given
    return model.edit(
        request.picture,
        given["instruction"],
        size=given["size"],
        steps=given["steps"],
        guidance=given["guidance"],
        image_guidance=given["image_guidance"],
        seed=request.config.seed,
        scheduler=given["scheduler"],
        stream=request.stream,
    )


_MAKING = ("size", "steps", "guidance", "scheduler")
TASKS: tuple[RunTask, ...] = (
    RunTask("generate", _generate, needs=("prompt",), takes=_MAKING, image="none", saves=True),
    RunTask("edit", _edit, needs=("instruction",), takes=(*_MAKING, "image_guidance"), saves=True),
)
