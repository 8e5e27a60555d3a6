"""``visionllm-edge bench``: how fast a bundle is. Progress goes to standard error."""

from __future__ import annotations

import json
from pathlib import Path

import click

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure the speed of a bundle's parts."""


@bench.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--prompt",
    type=click.IntRange(min=1),
    help="Tokens of the timed prompt; 512, or less where the context is short.",
)
@click.option(
    "--context",
    "contexts",
    multiple=True,
    type=click.IntRange(min=1),
    help="Tokens in front of the timed ones; 64 and 1024 as far as they fit. Repeatable.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=24,
    show_default=True,
    help="Timed tokens per context and round.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Processes per bundle; several bundles take turns.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=None, help="CPU threads of the backend."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def llm(
    bundles: tuple[Path, ...],
    prompt: int | None,
    contexts: tuple[int, ...],
    steps: int,
    rounds: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure the language model of BUNDLES: speed, memory, share of the memory's bandwidth."""
    from visionllm_edge.benchmarks.llm_bench import bench_llm, table

    result = bench_llm(
        bundles,
        prompt=prompt,
        contexts=contexts,
        steps=steps,
        rounds=rounds,
        threads=threads,
        note=lambda text: click.echo(f"bench: {text}", err=True),
    )
    click.echo(json.dumps(result) if as_json else table(result))
