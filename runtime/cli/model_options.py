"""Options that every command with a loaded model shares: how to load it, how it writes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.pipelines.loading import LoadOptions

__all__ = ["generation_options", "load_options"]

Command = Callable[..., Any]

_GENERATION = (
    click.option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        default=256,
        show_default=True,
        help="Length of a written answer at most.",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(min=0.0),
        default=0.0,
        show_default=True,
        help="Randomness of a written answer; 0 takes the likeliest word.",
    ),
    click.option(
        "--top-p",
        type=click.FloatRange(0.0, 1.0, min_open=True),
        default=1.0,
        show_default=True,
        help="Sample from the likeliest words of this total probability.",
    ),
    click.option(
        "--sample-top-k",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Sample from this many likeliest words; 0 is all.",
    ),
    click.option(
        "--seed", type=click.IntRange(min=0), help="Seed of the sampling, or of a picture's noise."
    ),
    click.option(
        "--lookup-tokens",
        type=click.IntRange(0, 64),
        default=0,
        show_default=True,
        help="Guess so many tokens ahead from the context and check them; 4 is a good number.",
    ),
)
_LOADING = (
    click.option("--threads", type=click.IntRange(min=1), help="Threads of the backend."),
    click.option(
        "--context",
        type=click.IntRange(min=1),
        help="Positions of a conversation; fewer take less memory.",
    ),
    click.option(
        "--buckets",
        type=click.IntRange(min=1),
        default=2,
        show_default=True,
        help="Picture sizes of the detector that stay loaded.",
    ),
    click.option(
        "--overlap/--no-overlap",
        default=None,
        help="Look at the picture while the language model runs [default: on a GPU].",
    ),
)


def generation_options(command: Command) -> Command:
    """Add the options of generation; the command gets them as ``config``."""

    @functools.wraps(command)
    def with_config(
        *args: Any,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        sample_top_k: int,
        seed: int | None,
        lookup_tokens: int,
        **rest: Any,
    ) -> Any:
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=sample_top_k,
            top_p=top_p,
            seed=seed,
            lookup_tokens=lookup_tokens,
        )
        return command(*args, config=config, **rest)

    return _with(_GENERATION, with_config)


def load_options(command: Command) -> Command:
    """Add the options of loading; the command gets them as ``loading``."""

    @functools.wraps(command)
    def with_loading(
        *args: Any,
        threads: int | None,
        context: int | None,
        buckets: int,
        overlap: bool | None,
        **rest: Any,
    ) -> Any:
        loading = LoadOptions(threads=threads, context=context, buckets=buckets, overlap=overlap)
        return command(*args, loading=loading, **rest)

    return _with(_LOADING, with_loading)


def _with(options: tuple[Callable[[Command], Command], ...], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
