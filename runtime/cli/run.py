"""``visionllm-edge run``: one question to a bundle about one picture."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from visionllm_edge.runtime.cli.output import (
    EventPrinter,
    check_save_path,
    print_result,
    save_picture,
)
from visionllm_edge.runtime.events import DoneEvent, Event
from visionllm_edge.runtime.images import load_image
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.model import Mode, Stream, VisionLLM
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
}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image", required=True, help="The picture to ask about.")
@click.option("--task", type=click.Choice(list(_NEEDS)), required=True, help="What to ask.")
@click.option("--classes", help="Detect, segment: names with commas between, 'red circle,person'.")
@click.option("--expression", help="Ground: what to find, 'the large red circle'.")
@click.option("--question", help="Vqa, chat: what to answer.")
@click.option(
    "--mode",
    type=click.Choice(["scripted", "free"]),
    default="scripted",
    show_default=True,
    help="Detect, segment, ground: known answer, or written by the model.",
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
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Length of a written answer at most.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0.0),
    default=0.0,
    show_default=True,
    help="Randomness of a written answer; 0 takes the likeliest word.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    default=1.0,
    show_default=True,
    help="Sample from the likeliest words of this total probability.",
)
@click.option(
    "--sample-top-k",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Sample from this many likeliest words; 0 is all.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the sampling.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the backend.")
@click.option("--verify/--no-verify", default=True, help="Hash the bundle's files first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--save", type=click.Path(path_type=Path), help="Write a picture of the result.")
@click.option("--stream", is_flag=True, help="Print the answer as it is made.")
def run(
    bundle: Path,
    image: str,
    task: str,
    classes: str | None,
    expression: str | None,
    question: str | None,
    mode: str,
    threshold: float,
    top_k: int,
    masks: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    sample_top_k: int,
    seed: int | None,
    threads: int | None,
    verify: bool,
    as_json: bool,
    save: Path | None,
    stream: bool,
) -> None:
    """Ask a bundle about a picture."""
    given = {"classes": classes, "expression": expression, "question": question}
    words = _words_for(task, given)
    if save is not None:
        check_save_path(save)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=sample_top_k,
        top_p=top_p,
        seed=seed,
    )
    # A bad picture is cheaper to find than a bundle is to load.
    pixels = load_image(image)
    model = VisionLLM.load(bundle, threads=threads, verify=verify)
    listen: Stream = EventPrinter(as_json=as_json) if stream else _ignore
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
        result = model.vqa(pixels, words, config=config, stream=listen)
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


def _ignore(event: Event) -> None:
    """Events of a run whose result is printed at the end."""
