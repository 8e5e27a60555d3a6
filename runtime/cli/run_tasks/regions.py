"""Tasks of the region encoder, and the options that point at regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from visionllm_edge.runtime.cli.run_tasks.base import Option, Request, RunTask
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.regions import Box, Mask, Point, Polygon, Region, Scribble
from visionllm_edge.runtime.results import Result

__all__ = ["OPTIONS", "POINTERS", "TASKS", "RegionType", "given_regions", "read_region"]


def _numbers(text: str, what: str, *, count: int | None = None) -> list[float]:
    try:
        values = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if not values or (count is not None and len(values) != count) or len(values) % 2:
        wanted = "pairs x,y" if count is None else f"{count} numbers"
        raise InputError(f"{what}: expected {wanted} with commas between, got {text!r}.")
    return values


def _pairs(text: str, what: str) -> tuple[tuple[float, float], ...]:
    values = _numbers(text, what)
    return tuple(zip(values[::2], values[1::2], strict=True))


_READERS: Mapping[str, Callable[[str], Region]] = {
    "box": lambda text: Box(*_numbers(text, "box", count=4)),
    "point": lambda text: Point(*_numbers(text, "point", count=2)),
    "polygon": lambda text: Polygon(_pairs(text, "polygon")),
    "scribble": lambda text: Scribble(_pairs(text, "scribble")),
    "mask": lambda text: Mask(text.strip()),
}
POINTERS = tuple(_READERS)
"""The ways to point, in the order in which their regions are numbered."""


def read_region(kind: str, text: str) -> Region:
    """A region as it is written on the command line; ``kind`` is one of :data:`POINTERS`.

    Raises:
        InputError: not what this kind consists of.
    """
    return _READERS[kind](text)


class RegionType(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """A value that is one region."""

    name = "text"

    def __init__(self, kind: str) -> None:
        """``kind`` is one of :data:`POINTERS`."""
        self._kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Region:
        """See click."""
        if not isinstance(value, str):
            region: Region = value
            return region
        try:
            return read_region(self._kind, value)
        except InputError as error:
            self.fail(str(error), param, ctx)


def _pointer(kind: str, metavar: str, help_text: str) -> Option:
    return click.option(
        f"--{kind}", multiple=True, type=RegionType(kind), metavar=metavar, help=help_text
    )


OPTIONS: tuple[Option, ...] = (
    _pointer("box", "X1,Y1,X2,Y2", "Describe, classify, segment, chat: a region by two corners."),
    _pointer("point", "X,Y", "A region by one place. All regions may be given several times."),
    _pointer("polygon", "X,Y,X,Y,...", "A region by its corners."),
    _pointer("scribble", "X,Y,X,Y,...", "A region by a line through it."),
    _pointer("mask", "FILE", "A region by a picture of its pixels, as large as the image."),
)


def given_regions(given: Mapping[str, Any]) -> list[Region]:
    """The regions of a command line: boxes first, then points, polygons, scribbles, masks."""
    return [region for kind in POINTERS for region in given[kind]]


def _one(task: str, given: Mapping[str, Any]) -> None:
    count = len(given_regions(given))
    if count != 1:
        options = ", ".join(f"--{kind}" for kind in POINTERS)
        raise click.UsageError(f"--task {task} needs one region ({options}), got {count}.")


def _describe(model: VisionLLM, request: Request) -> Result:
    (region,) = given_regions(request.given)
    return model.describe(request.picture, region, config=request.config, stream=request.stream)


def _classify(model: VisionLLM, request: Request) -> Result:
    (region,) = given_regions(request.given)
    return model.classify_region(
        request.picture,
        region,
        request.given["classes"].split(","),
        config=request.config,
        stream=request.stream,
    )


TASKS: tuple[RunTask, ...] = (
    RunTask("describe", _describe, takes=POINTERS, check=lambda given: _one("describe", given)),
    RunTask(
        "classify",
        _classify,
        needs=("classes",),
        takes=POINTERS,
        check=lambda given: _one("classify", given),
    ),
)
