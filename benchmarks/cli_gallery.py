"""``visionllm-edge gallery``: a picture for every task that a bundle can do."""

from __future__ import annotations

from pathlib import Path

import click

from visionllm_edge.benchmarks.cli_options import SEED, THREADS

__all__ = ["gallery"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for them."
)
@SEED
@THREADS
def gallery(bundle: Path, output: Path, seed: int, threads: int | None) -> None:
    """Ask BUNDLE one question per task about scenes it never saw, and draw the answers."""
    from visionllm_edge.benchmarks.gallery import make_gallery, tasks_of
    from visionllm_edge.runtime.bundle import Bundle
    from visionllm_edge.runtime.model import VisionLLM
    from visionllm_edge.runtime.pipelines.loading import LoadOptions

    opened = Bundle.open(bundle)
    model = VisionLLM.from_bundle(opened, LoadOptions(threads=threads))
    tasks = tasks_of(opened.manifest.model)
    for entry in make_gallery(model, tasks, output, seed=seed):
        click.echo(f"{entry.task}: {entry.asked}")
        click.echo(f"  said: {entry.said}")
        click.echo(f"  true: {entry.truth}")
    click.echo(f"saved {output / 'gallery.png'}", err=True)
