"""What the commands print: results and events as text or JSON, pictures to a file."""

from __future__ import annotations

import json
from pathlib import Path

import click
from PIL import Image

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.events import DetectionEvent, DoneEvent, Event, TokenEvent
from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.results import Detection, Result, TextResult

__all__ = [
    "EventPrinter",
    "check_save_path",
    "detection_line",
    "print_result",
    "printable",
    "save_picture",
]


def detection_line(found: Detection) -> str:
    """``red circle  0.987  x 12.0..40.5  y 8.1..33.0`` with the size of the mask if it has one."""
    left, top, right, bottom = found.box_xyxy
    name = printable(found.label)
    line = f"{name}  {found.score:.3f}  x {left:.1f}..{right:.1f}  y {top:.1f}..{bottom:.1f}"
    return line if found.mask is None else f"{line}  mask {int(found.mask.sum())} px"


def printable(text: str) -> str:
    """Text without control characters: an answer must not steer the terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def print_result(result: Result, *, as_json: bool) -> None:
    """A whole result on stdout."""
    if as_json:
        click.echo(json.dumps(result.to_dict()))
        return
    if result.text:
        click.echo(printable(result.text))
    if not isinstance(result, TextResult):
        for found in result.detections:
            click.echo(detection_line(found))


class EventPrinter:
    """Prints a stream: words as they come, then one line for each object.

    Args:
        as_json: one JSON object for each event and line instead.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        """Start at the beginning of a line."""
        self._as_json = as_json
        self._in_line = False

    def __call__(self, event: Event) -> None:
        """Print one event."""
        if self._as_json:
            click.echo(json.dumps(event.to_dict()))
        elif isinstance(event, TokenEvent):
            self._in_line = self._in_line or bool(event.text)
            click.echo(printable(event.text), nl=False)
        elif isinstance(event, DetectionEvent):
            self.end_line()
            click.echo(detection_line(event.detection))
        elif isinstance(event, DoneEvent):
            self.end_line()

    def end_line(self) -> None:
        """Break the line that words were written to."""
        if self._in_line:
            click.echo()
            self._in_line = False


def check_save_path(path: Path) -> None:
    """Refuse a place where no picture can be written, before any work is done.

    Raises:
        InputError: an unknown ending, or a folder that does not exist.
    """
    if path.suffix.lower() not in Image.registered_extensions():
        raise InputError(
            f"--save: expected a picture's ending such as .png or .jpg, got '{path.name}'. "
            "Change the file name."
        )
    if not path.parent.is_dir():
        raise InputError(
            f"--save: expected an existing folder, got '{path.parent}'. Make it first."
        )


def save_picture(result: Result, image: ImageLike, path: Path) -> None:
    """Draw a result and write it; says on stderr where.

    Raises:
        InputError: the file cannot be written.
    """
    check_save_path(path)
    try:
        result.draw(image).save(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--save: '{path}' cannot be written: {error}. Change the path."
        ) from error
    click.echo(f"saved {path}", err=True)
