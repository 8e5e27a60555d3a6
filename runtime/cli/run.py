"""``visionllm-edge run``: one question to a bundle, about one picture or to its language model."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.cli.model_options import generation_options, load_options
from visionllm_edge.runtime.cli.output import (
    EventPrinter,
    check_save_path,
    print_result,
    save_picture,
)
from visionllm_edge.runtime.events import DoneEvent, Event
from visionllm_edge.runtime.images import load_image
from visionllm_edge.runtime.language_model import LanguageModel
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.model import Mode, Stream, VisionLLM
from visionllm_edge.runtime.pipelines.loading import LoadOptions
from visionllm_edge.runtime.results import Result

__all__ = ["run"]

# What each task must be told.
_NEEDS = {
    "detect": "classes",
    "segment": "classes",
    "ground": "expression",
    "caption": None,
    "vqa": "question",
    "chat": "question",
    "text": "prompt",
}
_WITH_CHOICES = ("vqa", "text")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image", help="The picture to ask about; every task but text needs one.")
@click.option("--task", type=click.Choice(list(_NEEDS)), required=True, help="What to ask.")
@click.option("--classes", help="Detect, segment: names with commas between, 'red circle,person'.")
@click.option("--expression", help="Ground: what to find, 'the large red circle'.")
@click.option("--question", help="Vqa, chat: what to answer.")
@click.option("--prompt", help="Text: what to ask a bundle of a language model alone.")
@click.option("--raw", is_flag=True, help="Text: go on writing the prompt, as bare text.")
@click.option("--choices", help="Vqa, text: the only answers allowed, with commas, 'yes,no'.")
@click.option(
    "--mode",
    type=click.Choice(["scripted", "listed", "free"]),
    default="scripted",
    show_default=True,
    help="Detect, segment, ground: known answer, a list of the classes seen, or free words.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0.0, 1.0),
    default=0.3,
    show_default=True,
    help="Smallest score of a detection.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Number of detections at most.",
)
@click.option("--masks", is_flag=True, help="Ground, chat: masks as well (segment has them).")
@generation_options
@load_options
@click.option("--verify/--no-verify", default=True, help="Hash the bundle's files first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--save", type=click.Path(path_type=Path), help="Write a picture of the result.")
@click.option("--stream", is_flag=True, help="Print the answer as it is made.")
def run(
    bundle: Path,
    image: str | None,
    task: str,
    classes: str | None,
    expression: str | None,
    question: str | None,
    prompt: str | None,
    raw: bool,
    choices: str | None,
    mode: str,
    threshold: float,
    top_k: int,
    masks: bool,
    config: GenerationConfig,
    loading: LoadOptions,
    verify: bool,
    as_json: bool,
    save: Path | None,
    stream: bool,
) -> None:
    """Ask a bundle about a picture, or its language model in words."""
    given = {
        "classes": classes,
        "expression": expression,
        "question": question,
        "prompt": prompt,
    }
    words = _words_for(task, given)
    allowed = _choices_for(task, choices)
    if raw and task != "text":
        raise click.UsageError(f"--raw does not belong to --task {task}.")
    listen: Stream = EventPrinter(as_json=as_json) if stream else _ignore
    if task == "text":
        if image is not None or save is not None:
            raise click.UsageError("--image and --save do not belong to --task text.")
        language = LanguageModel.from_bundle(Bundle.open(bundle, verify=verify), loading)
        answer = language.generate(words, raw=raw, choices=allowed, config=config, stream=listen)
        if not stream:
            print_result(answer, as_json=as_json)
        return
    if image is None:
        raise click.UsageError(f"--task {task} needs --image.")
    if save is not None:
        check_save_path(save)
    # A bad picture is cheaper to find than a bundle is to load.
    pixels = load_image(image)
    model = VisionLLM.from_bundle(Bundle.open(bundle, verify=verify), loading)
    way = cast(Mode, mode)
    result: Result
    if task in ("detect", "segment"):
        result = model.detect(
            pixels,
            words.split(",") if words else [],
            mode=way,
            threshold=threshold,
            top_k=top_k,
            masks=masks or task == "segment",
            config=config,
            stream=listen,
        )
    elif task == "ground":
        result = model.ground(pixels, words, mode=way, masks=masks, config=config, stream=listen)
    elif task == "caption":
        result = model.caption(pixels, config=config, stream=listen)
    elif task == "vqa":
        result = model.vqa(pixels, words, choices=allowed, config=config, stream=listen)
    else:
        session = model.chat(pixels, config=config, threshold=threshold, top_k=top_k, masks=masks)
        for event in session.stream(words):
            listen(event)
            if isinstance(event, DoneEvent):
                result = event.result
    if not stream:
        print_result(result, as_json=as_json)
    if save is not None:
        save_picture(result, pixels, save)


def _words_for(task: str, given: dict[str, str | None]) -> str:
    """The words that a task needs; refuses a task without them, and words of another task."""
    needed = _NEEDS[task]
    for name, value in given.items():
        if name == needed and value is None:
            raise click.UsageError(f"--task {task} needs --{name}.")
        if name != needed and value is not None:
            raise click.UsageError(f"--{name} does not belong to --task {task}.")
    return (given[needed] or "") if needed is not None else ""


def _choices_for(task: str, choices: str | None) -> list[str] | None:
    if choices is None:
        return None
    if task not in _WITH_CHOICES:
        raise click.UsageError(f"--choices does not belong to --task {task}.")
    return choices.split(",")


def _ignore(event: Event) -> None:
    """Events of a run whose result is printed at the end."""
