"""``visionllm-edge bench``: how fast a bundle is. Progress goes to standard error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from visionllm_edge.benchmarks.bench.cli_options import (
    BundleFirst,
    Size,
    measuring_options,
    write_text,
)
from visionllm_edge.benchmarks.cli_options import JSON, THREADS

if TYPE_CHECKING:
    from visionllm_edge.benchmarks.bench.measurement import Workload
    from visionllm_edge.benchmarks.bench.run import BenchOptions

__all__ = ["bench"]

TOLERANCE = 0.02
"""Of the gate: a smaller slowdown passes."""


@click.group(cls=BundleFirst)
def bench() -> None:
    """Measure a bundle: `bench BUNDLE`, or one of the commands below."""


@bench.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@measuring_options
@click.option(
    "--vs",
    type=click.Path(exists=True, path_type=Path),
    help="Measure this bundle in turns with the first, and compare them.",
)
@click.option(
    "--out-vs", type=click.Path(path_type=Path), help="With --vs: write the second result here."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the result's JSON here.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write a Markdown table here.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page that opens from disk.")
@click.option("--plots", type=click.Path(path_type=Path), help="Write every picture as SVG here.")
@JSON
def run(
    bundle: Path,
    workload: Workload,
    options: BenchOptions,
    vs: Path | None,
    out_vs: Path | None,
    out: Path | None,
    markdown: Path | None,
    html: Path | None,
    plots: Path | None,
    as_json: bool,
) -> None:
    """Measure every task of BUNDLE over the calls that a user makes."""
    if out_vs is not None and vs is None:
        raise click.UsageError("--out-vs belongs to --vs.")
    from visionllm_edge.benchmarks.bench.accuracy import accuracy_of
    from visionllm_edge.benchmarks.bench.measurement import write_result
    from visionllm_edge.benchmarks.bench.run import bench_bundle
    from visionllm_edge.benchmarks.bench.tables import markdown_table, text_table

    compared = ""
    if vs is None:
        result = bench_bundle(bundle, workload, options, accuracy=accuracy_of, note=_note)
    else:
        from visionllm_edge.benchmarks.bench.compare import compare_results, comparison_table
        from visionllm_edge.benchmarks.bench.versus import bench_versus

        result, other = bench_versus(bundle, vs, workload, options, note=_note)
        compared = "\n\n" + comparison_table(compare_results(result, other), TOLERANCE)
        if out_vs is not None:
            write_result(out_vs, other)
    if out is not None:
        write_result(out, result)
    if markdown is not None:
        write_text(markdown, markdown_table(result))
    if html is not None:
        from visionllm_edge.benchmarks.bench.page import html_page

        write_text(html, html_page(result))
    if plots is not None:
        from visionllm_edge.benchmarks.bench.page import plot_files

        for name, picture in plot_files(result).items():
            write_text(plots / name, picture)
    click.echo(json.dumps(result.to_dict()) if as_json else text_table(result) + compared)


@bench.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0.0),
    default=TOLERANCE,
    show_default=True,
    help="Exit with 1 where a task or stage became slower by more than this share.",
)
def compare(before: Path, after: Path, tolerance: float) -> None:
    """Which differences between two results are real; the gate of a change."""
    from visionllm_edge.benchmarks.bench.compare import compare_results, comparison_table
    from visionllm_edge.benchmarks.bench.measurement import read_result

    comparison = compare_results(read_result(before), read_result(after))
    click.echo(comparison_table(comparison, tolerance))
    slower = comparison.slower(tolerance)
    if slower:
        raise click.ClickException(
            f"slower by more than {tolerance:.0%}: {', '.join(one.what for one in slower)}."
        )


@bench.command()
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@measuring_options
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "int8", "int4", "int4-awq"]),
    default=("fp32", "int8", "int4"),
    show_default=True,
    help="Of the language model. Repeatable.",
)
@click.option(
    "--block",
    "blocks",
    multiple=True,
    type=click.Choice(["32", "64", "128"]),
    default=("32",),
    show_default=True,
    help="Weights that share a scale. Repeatable.",
)
@click.option(
    "--vision-precision",
    "visions",
    multiple=True,
    metavar="[STAGE=]PRECISION[,...]",
    help="Of the stages beside the language model [default: the target's]. Repeatable.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=("cpu",),
    show_default=True,
    help="What runs the stages; engines of a GPU are built on it. Repeatable.",
)
@click.option(
    "--with-queries",
    multiple=True,
    type=click.IntRange(min=1),
    help="Proposals that the object decoder follows [default: all]. Repeatable.",
)
@click.option("--with-threads", multiple=True, type=click.IntRange(min=1), help="Repeatable.")
@click.option("--with-size", multiple=True, type=Size(), help="Of the pictures. Repeatable.")
@click.option("--with-classes", multiple=True, type=click.IntRange(min=1), help="Repeatable.")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("build/sweep"),
    show_default=True,
    help="Bundles, results and pictures go here.",
)
def sweep(
    checkpoint: Path,
    workload: Workload,
    options: BenchOptions,
    precisions: tuple[str, ...],
    blocks: tuple[str, ...],
    visions: tuple[str, ...],
    targets: tuple[str, ...],
    with_queries: tuple[int, ...],
    with_threads: tuple[int, ...],
    with_size: tuple[tuple[int, int], ...],
    with_classes: tuple[int, ...],
    work: Path,
) -> None:
    """Compile CHECKPOINT in several ways, measure each, and show which are worth taking."""
    from visionllm_edge.benchmarks.bench.accuracy import accuracy_of
    from visionllm_edge.benchmarks.bench.apart import bench_apart
    from visionllm_edge.benchmarks.bench.sweep import Grid, run_sweep, sweep_table
    from visionllm_edge.benchmarks.bench.sweep_files import (
        check_recipes,
        compiler,
        write_sweep,
    )

    grid = Grid(
        precisions,
        tuple(int(block) for block in blocks),
        visions or (None,),
        with_queries or (None,),
        targets,
        with_threads or (options.threads,),
        with_size or (workload.image_px,),
        with_classes or (len(workload.classes),),
    )
    check_recipes(grid.recipes(), checkpoint)
    found = run_sweep(
        grid,
        compiler(checkpoint, work),
        workload,
        options,
        measure=bench_apart,
        accuracy=accuracy_of,
        note=_note,
    )
    for path in write_sweep(found, work):
        click.echo(f"wrote {path}", err=True)
    click.echo(sweep_table(found))


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
@THREADS
@JSON
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
        note=_note,
    )
    click.echo(json.dumps(result) if as_json else table(result))


@bench.command()
def schema() -> None:
    """Print the JSON Schema of what `--json` and `--out` write."""
    from visionllm_edge.benchmarks.bench.schema import SCHEMA_FILE

    click.echo(SCHEMA_FILE.read_text(encoding="utf-8"), nl=False)


def _note(text: str) -> None:
    click.echo(f"bench: {text}", err=True)
