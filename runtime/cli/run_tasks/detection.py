"""Tasks of the object decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import click

from visionllm_edge.runtime.cli.run_tasks.base import Option, Request, RunTask
from visionllm_edge.runtime.cli.run_tasks.regions import POINTERS, given_regions
from visionllm_edge.runtime.model import Mode, VisionLLM
from visionllm_edge.runtime.results import Result

__all__ = ["OPTIONS", "TASKS"]

OPTIONS: tuple[Option, ...] = (
    click.option(
        "--classes", help="Detect, segment: names with commas between, 'red circle,person'."
    ),
    click.option(
        "--mode",
        type=click.Choice(["scripted", "listed", "free"]),
        default="scripted",
        show_default=True,
        help="Detect, segment, ground: known answer, a list of the classes seen, or free words.",
    ),
    click.option(
        "--threshold",
        type=click.FloatRange(0.0, 1.0),
        default=None,
        help="Smallest score, 0.3; of a pose 0.1, of a pixel's class 0.5.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(min=1),
        default=100,
        show_default=True,
        help="Number of detections at most.",
    ),
    click.option("--masks", is_flag=True, help="Detect, ground, chat: masks as well."),
)


def _detect(model: VisionLLM, request: Request) -> Result:
    given = request.given
    return model.detect(
        request.picture,
        given["classes"].split(",") if given["classes"] else [],
        mode=cast(Mode, given["mode"]),
        threshold=request.threshold(0.3),
        top_k=given["top_k"],
        masks=given["masks"],
        config=request.config,
        stream=request.stream,
    )


def _segment(model: VisionLLM, request: Request) -> Result:
    given = request.given
    regions = given_regions(given)
    if regions:
        return model.segment(request.picture, regions=regions, stream=request.stream)
    return model.segment(
        request.picture,
        given["classes"].split(",") if given["classes"] else [],
        mode=cast(Mode, given["mode"]),
        threshold=request.threshold(0.3),
        top_k=given["top_k"],
        config=request.config,
        stream=request.stream,
    )


def _classes_or_regions(given: Mapping[str, Any]) -> None:
    if bool(given["classes"]) == bool(given_regions(given)):
        raise click.UsageError("--task segment needs --classes or regions such as --box, not both.")


_SELECTION = ("mode", "threshold", "top_k", "masks")
TASKS: tuple[RunTask, ...] = (
    RunTask("detect", _detect, needs=("classes",), takes=_SELECTION),
    RunTask(
        "segment", _segment, takes=("classes", *POINTERS, *_SELECTION), check=_classes_or_regions
    ),
)
