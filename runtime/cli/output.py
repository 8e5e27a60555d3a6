"""What the commands print: results and events as text or JSON, pictures to a file."""

from __future__ import annotations

import json
from pathlib import Path

import click
from PIL import Image

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.events import (
    DetectionEvent,
    DoneEvent,
    Event,
    ImageEvent,
    PoseEvent,
    ProgressEvent,
    TokenEvent,
)
from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.results import (
    Detection,
    ImageResult,
    Pose,
    Result,
    SemanticResult,
)

__all__ = [
    "EventPrinter",
    "ProgressLine",
    "check_save_path",
    "detection_line",
    "image_line",
    "pose_lines",
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


def pose_lines(pose: Pose) -> str:
    """The instance as a detection's line, and a line for each keypoint below it."""
    head = detection_line(Detection(pose.label, pose.score, pose.box_xyxy))
    places = (f"  {printable(k.name)}  x {k.x:.1f}  y {k.y:.1f}" for k in pose.keypoints)
    return "\n".join([head, *places])


def image_line(made: ImageResult) -> str:
    """``picture 64 x 64  seed 7  20 steps of pndm``."""
    height, width = made.size
    return f"picture {width} x {height}  seed {made.seed}  {made.steps} steps of {made.scheduler}"


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
    for found in getattr(result, "detections", ()):
        click.echo(detection_line(found))
    for pose in getattr(result, "poses", ()):
        click.echo(pose_lines(pose))
    if isinstance(result, SemanticResult):
        for index, name in enumerate(result.classes):
            click.echo(f"{printable(name)}  {int((result.labels == index).sum())} px")
    pictures = [result] if isinstance(result, ImageResult) else getattr(result, "images", ())
    for picture in pictures:
        click.echo(image_line(picture))


class ProgressLine:
    """Counts steps in one line of stderr; ignores every other event."""

    def __init__(self) -> None:
        """Nothing is written yet."""
        self._open = False

    def __call__(self, event: Event) -> None:
        """Write the count anew."""
        if isinstance(event, ProgressEvent):
            self._open = event.step < event.total
            click.echo(f"\r{event.what} {event.step}/{event.total}", nl=not self._open, err=True)

    def end_line(self) -> None:
        """Break the line of a run that did not reach its last step."""
        if self._open:
            click.echo(err=True)
            self._open = False


class EventPrinter:
    """Prints a stream: words as they come, then one line for each object.

    Args:
        as_json: one JSON object for each event and line instead.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        """Start at the beginning of a line."""
        self._as_json = as_json
        self._in_line = False
        self._progress = ProgressLine()

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
        elif isinstance(event, PoseEvent):
            self.end_line()
            click.echo(pose_lines(event.pose))
        elif isinstance(event, ImageEvent):
            self.end_line()
            click.echo(image_line(event.image))
        elif isinstance(event, ProgressEvent):
            self._progress(event)
        elif isinstance(event, DoneEvent):
            self.end_line()

    def end_line(self) -> None:
        """Break the lines that words and a count were written to."""
        self._progress.end_line()
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


def save_picture(result: Result, image: ImageLike | None, path: Path) -> None:
    """Draw a result and write it; says on stderr where.

    Raises:
        InputError: the file cannot be written.
    """
    check_save_path(path)
    assert image is not None or isinstance(result, ImageResult), "nothing to draw on"
    try:
        result.draw(image).save(path)  # type: ignore[arg-type]  # see the line before
    except (OSError, ValueError) as error:
        raise InputError(
            f"--save: '{path}' cannot be written: {error}. Change the path."
        ) from error
    click.echo(f"saved {path}", err=True)
