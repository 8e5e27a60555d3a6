"""``visionllm-edge run``: one question to a bundle, about one picture or to its language model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.cli.model_options import generation_options, load_options
from visionllm_edge.runtime.cli.output import (
    EventPrinter,
    ProgressLine,
    check_save_path,
    print_result,
    save_picture,
)
from visionllm_edge.runtime.cli.run_tasks import (
    detection,
    grounding,
    images,
    language,
    pose,
    regions,
)
from visionllm_edge.runtime.cli.run_tasks.base import Option, Request, RunTask
from visionllm_edge.runtime.draw_regions import draw_regions
from visionllm_edge.runtime.events import Event
from visionllm_edge.runtime.images import load_image
from visionllm_edge.runtime.language_model import LanguageModel
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.model import Stream, VisionLLM
from visionllm_edge.runtime.pipelines.loading import LoadOptions

__all__ = ["run"]

_GROUPS = (detection, language, regions, grounding, pose, images)
_TASKS: dict[str, RunTask] = {task.name: task for group in _GROUPS for task in group.TASKS}
_TEXT = "text"
_TEXT_TAKES = ("prompt", "raw", "choices")
_TEXT_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--prompt", help="Text: what to ask a language model alone. Generate: what to show."
    ),
    click.option("--raw", is_flag=True, help="Text: go on writing the prompt, as bare text."),
)


def _task_options(command: Any) -> Any:
    options = (*(option for group in _GROUPS for option in group.OPTIONS), *_TEXT_OPTIONS)
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image", help="The picture to ask about; most tasks need one.")
@click.option("--task", type=click.Choice([*_TASKS, _TEXT]), required=True, help="What to ask.")
@_task_options
@generation_options
@load_options
@click.option("--verify/--no-verify", default=True, help="Hash the bundle's files first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--save", type=click.Path(path_type=Path), help="Write a picture of the result.")
@click.option("--stream", is_flag=True, help="Print the answer as it is made.")
@click.pass_context
def run(
    context: click.Context,
    /,
    bundle: Path,
    image: str | None,
    task: str,
    config: GenerationConfig,
    loading: LoadOptions,
    verify: bool,
    as_json: bool,
    save: Path | None,
    stream: bool,
    **given: Any,
) -> None:
    """Ask a bundle about a picture, or its language model in words."""
    listen: EventPrinter | ProgressLine = ProgressLine()
    if stream:
        listen = EventPrinter(as_json=as_json)
    # Only who looks on is told that it goes on; a log or a script gets the result.
    watched: Stream = listen if stream or (sys.stderr.isatty() and not as_json) else _ignore
    if task == _TEXT:
        _refuse_others(context, task, _TEXT_TAKES)
        if given["prompt"] is None:
            raise click.UsageError("--task text needs --prompt.")
        if image is not None or save is not None:
            raise click.UsageError("--image and --save do not belong to --task text.")
        answer = LanguageModel.from_bundle(Bundle.open(bundle, verify=verify), loading).generate(
            given["prompt"],
            raw=given["raw"],
            choices=language.split_choices(given["choices"]),
            config=config,
            stream=watched,
        )
        if not stream:
            print_result(answer, as_json=as_json)
        return
    entry = _TASKS[task]
    _refuse_others(context, task, (*entry.needs, *entry.takes))
    for name in entry.needs:
        if given[name] in (None, ()):
            raise click.UsageError(f"--task {task} needs {_option(name)}.")
    if entry.check is not None:
        entry.check(given)
    if image is None and entry.image == "needed":
        raise click.UsageError(f"--task {task} needs --image.")
    if image is not None and entry.image == "none":
        raise click.UsageError(f"--image does not belong to --task {task}.")
    if save is None and entry.saves:
        raise click.UsageError(f"--task {task} needs --save, where its picture goes.")
    if save is not None:
        check_save_path(save)
    # A bad picture is cheaper to find than a bundle is to load.
    pixels = None if image is None else load_image(image)
    model = VisionLLM.from_bundle(Bundle.open(bundle, verify=verify), loading)
    try:
        result = entry.call(model, Request(pixels, config, watched, given))
    finally:
        listen.end_line()
    if not stream:
        print_result(result, as_json=as_json)
    if save is not None:
        pointed = regions.given_regions(given)
        if pointed and pixels is not None:
            pixels = draw_regions(pixels, pointed)
        save_picture(result, pixels, save)


def _refuse_others(context: click.Context, task: str, own: tuple[str, ...]) -> None:
    """Refuse options that only other tasks take."""
    theirs = {name for entry in _TASKS.values() for name in (*entry.needs, *entry.takes)}
    theirs |= set(_TEXT_TAKES)
    for name in sorted(theirs.difference(own)):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{_option(name)} does not belong to --task {task}.")


def _option(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"


def _ignore(event: Event) -> None:
    """Events of a run whose result is printed at the end."""
