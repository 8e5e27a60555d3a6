"""Commands `compile`, `verify` and `demo`. Results on stdout, progress on stderr.

The exporter's packages are imported when a command runs, so that help works without them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

import click

__all__ = ["compile_", "demo", "verify"]

_FOLDER = click.Path(path_type=Path)
_JOBS = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=min(2, os.cpu_count() or 1),
    show_default=True,
    help="Processes that build stages side by side.",
)
_CACHE = click.option(
    "--cache",
    "cache_folder",
    type=_FOLDER,
    help="Folder of compiled stages [default: $VISIONLLM_EDGE_CACHE or ~/.cache/visionllm-edge].",
)
_NO_CACHE = click.option("--no-cache", is_flag=True, help="Build every stage, keep none.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@contextlib.contextmanager
def _interruptible(consequence: str) -> Iterator[None]:
    """An interruption is one line and exit code 1."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"Interrupted. {consequence}", err=True)
        click.get_current_context().exit(1)


@click.command("compile")
@click.argument("checkpoint", type=_FOLDER)
@click.option("-o", "--output", required=True, type=_FOLDER, help="Folder of the bundle.")
@click.option("--target", default="cpu", show_default=True, help="What to compile for.")
@click.option("--name", help="Name in the manifest [default: the checkpoint's].")
@click.option(
    "--llm-precision",
    type=click.Choice(["fp32", "int8", "int4", "int4-awq", "stored"]),
    default="fp32",
    show_default=True,
    help="Weights of the language model; int4-awq searches scales on calibration text, stored "
    "keeps a quantised model's own blocks.",
)
@click.option(
    "--llm-block",
    type=click.Choice(["32", "64", "128"]),
    help="Weights that share a scale [default: 32].",
)
@click.option(
    "--llm-head",
    type=click.Choice(["fp32", "int8"]),
    help="Output matrix [default: int8 beside quantised weights if it is large].",
)
@click.option(
    "--llm-cache",
    type=click.Choice(["float32", "float16", "int8"]),
    help="Keys and values [default: float16 beside quantised weights]; int8 goes with any weights.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    metavar="[STAGE=]PRECISION",
    help="fp32, or int8 for vision stages, all or by name; repeatable [default: the target's].",
)
@click.option(
    "--calibration-text",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Text for int4-awq and a cache of int8 [default: one that comes with this package].",
)
@click.option(
    "--queries",
    type=click.IntRange(min=1),
    help="Proposals that the object decoder follows [default: all that the checkpoint can].",
)
@_JOBS
@_CACHE
@_NO_CACHE
@_JSON
def compile_(
    checkpoint: Path,
    output: Path,
    target: str,
    name: str | None,
    llm_precision: str,
    llm_block: str | None,
    llm_head: str | None,
    llm_cache: str | None,
    precisions: tuple[str, ...],
    calibration_text: Path | None,
    queries: int | None,
    jobs: int,
    cache_folder: Path | None,
    no_cache: bool,
    as_json: bool,
) -> None:
    """Compile CHECKPOINT into a bundle.

    CHECKPOINT is the folder of a VisionLLM v2, the folder of a LLaMA, or a GGUF file. A compile
    that was interrupted while it quantised goes on where it stopped.
    """
    with _interruptible("No bundle was written."):
        # Importing torch takes seconds: an interruption may well arrive here.
        from visionllm_edge.export.cache import StageCache, default_cache_folder
        from visionllm_edge.export.compile import compile_checkpoint
        from visionllm_edge.export.progress import Progress
        from visionllm_edge.export.quantize.policy import LlmPrecision
        from visionllm_edge.export.stage_precisions import precisions_for

        precision = LlmPrecision.from_options(
            llm_precision, None if llm_block is None else int(llm_block), llm_head, llm_cache
        )
        common, own = precisions_for(precisions)
        cache = None if no_cache else StageCache(cache_folder or default_cache_folder())
        report = compile_checkpoint(
            checkpoint,
            output,
            target=target,
            name=name,
            cache=cache,
            jobs=jobs,
            progress=Progress(),
            llm=precision,
            precision=common,
            stage_precision=own,
            calibration_text=calibration_text,
            queries=queries,
        )
    if as_json:
        click.echo(
            json.dumps(
                {
                    "bundle": str(report.bundle),
                    "seconds": round(report.seconds, 2),
                    "built": report.built,
                    "reused": report.reused,
                    "end_to_end": report.end_to_end,
                }
            )
        )
        return
    click.echo(
        f"{report.bundle}: {len(report.built)} stages built, {len(report.reused)} reused, "
        f"{report.seconds:.1f} s"
    )


@click.command()
@click.argument("bundle", type=_FOLDER)
@click.option("--checkpoint", type=_FOLDER, help="Compare with this checkpoint in torch.")
@click.option(
    "--layerwise",
    metavar="STAGE",
    help="BUNDLE is a build kit: find the first layer of this stage that differs on the device.",
)
@click.option("--plugin-library", type=_FOLDER, help="Plugins for --layerwise.")
@_JSON
def verify(
    bundle: Path,
    checkpoint: Path | None,
    layerwise: str | None,
    plugin_library: Path | None,
    as_json: bool,
) -> None:
    """Check the files of BUNDLE and compare its stages with the model again."""
    if layerwise is not None:
        _layerwise(bundle, layerwise, plugin_library, as_json)
        return
    with _interruptible("The bundle was not changed."):
        from visionllm_edge.export.progress import Progress
        from visionllm_edge.export.verify import verify_bundle

        report = verify_bundle(bundle, checkpoint=checkpoint, progress=Progress())
    if as_json:
        click.echo(json.dumps(report.to_dict()))
        return
    comparisons = sum(verdict.comparisons for verdict in report.stages)
    click.echo(
        f"{bundle}: {report.files} files unchanged, {len(report.stages)} stages right "
        f"({comparisons} tensors against the {report.against})"
    )


def _layerwise(kit: Path, stage: str, plugin_library: Path | None, as_json: bool) -> None:
    with _interruptible("The kit was not changed."):
        from visionllm_edge.export.layerwise import bisect

        found = bisect(kit, stage, plugin_library=plugin_library)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
        return
    for command in found.commands:
        click.echo(command, err=True)
    overflow = f"'{found.not_finite}' is not finite" if found.not_finite else "all finite"
    click.echo(f"{found.stage}: {found.tensors} tensors in ONNX Runtime, {overflow}")
    if not found.compared:
        click.echo(f"not compared with an engine: {found.device}")
    elif found.first is None:
        click.echo(f"no layer differs on {found.device}; a fused engine may still")
    else:
        click.echo(f"first layer that differs on {found.device}: '{found.first}'")
        click.echo(f"by {found.difference:.3g} of its largest value")


@click.command()
@click.option(
    "-o",
    "--output",
    type=_FOLDER,
    default=Path("build/demo"),
    show_default=True,
    help="Folder for bundle and picture.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of the picture.")
@click.option("--checkpoint", type=_FOLDER, help="Compile this one instead of the tiny one.")
@_JOBS
@_CACHE
@_NO_CACHE
def demo(
    output: Path,
    seed: int | None,
    checkpoint: Path | None,
    jobs: int,
    cache_folder: Path | None,
    no_cache: bool,
) -> None:
    """Compile the tiny checkpoint and try it on a fresh picture."""
    with _interruptible("The demo did not finish."):
        from visionllm_edge.export.cache import StageCache, default_cache_folder
        from visionllm_edge.export.demo import DEMO_SEED, run_demo
        from visionllm_edge.export.progress import Progress

        progress = Progress()
        answers = run_demo(
            output,
            checkpoint=checkpoint,
            seed=DEMO_SEED if seed is None else seed,
            cache=None if no_cache else StageCache(cache_folder or default_cache_folder()),
            jobs=jobs,
            progress=progress,
        )
    click.echo(f"looked for: {', '.join(answers.classes)}")
    for found in answers.found.detections:
        box = ", ".join(f"{side:.0f}" for side in found.box_xyxy)
        area = 0 if found.mask is None else int(found.mask.sum())
        click.echo(f"  {found.label:<10} {found.score:.2f}  box {box}  mask {area} px")
    click.echo(f"caption:  {answers.caption.text}")
    click.echo(f"question: {answers.answer.question}")
    click.echo(f"answer:   {answers.answer.text}")
    click.echo(f"really there: {answers.truth[0]} (right answer: {answers.truth[1]})")
    click.echo(f"picture: {answers.picture}")
    click.echo(f"bundle:  {answers.bundle}")
    click.echo(f"total {progress.elapsed_s:.0f} s", err=True)
