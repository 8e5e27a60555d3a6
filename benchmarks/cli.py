"""``visionllm-edge eval``: how right a bundle's answers are on freshly made pictures.

The table or the JSON goes to standard output, progress to standard error.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from visionllm_edge.benchmarks.cli_options import JSON, SEED, THREADS

if TYPE_CHECKING:
    from visionllm_edge.benchmarks.accuracy import Evaluation, Model

__all__ = ["eval_"]

# The table of the tasks is not loaded before one is asked for; a test holds the two equal.
_TASKS = (
    *("detect", "segment", "caption", "vqa", "region", "interactive", "pose", "grounded-caption"),
    *("semantic", "generate", "edit"),
)


@click.command(name="eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--task",
    type=click.Choice(_TASKS),
    required=True,
    help="What to ask of the bundle.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="How many pictures to make.",
)
@SEED
@click.option(
    "--prompts",
    type=click.Choice(["shape", "phrase"]),
    default="shape",
    show_default=True,
    help="How detect and segment name what to find: 'circle', or 'red circle'.",
)
@click.option(
    "--size",
    "size_px",
    type=click.IntRange(min=32, max=2048),
    default=128,
    show_default=True,
    help="Width and height of the pictures in pixels.",
)
@THREADS
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    default=None,
    help="Also judge this checkpoint, run by torch, on the same pictures.",
)
@JSON
def eval_(
    bundle: Path,
    task: str,
    images: int,
    seed: int,
    prompts: Literal["shape", "phrase"],
    size_px: int,
    threads: int | None,
    checkpoint: Path | None,
    as_json: bool,
) -> None:
    """Measure the answers of BUNDLE on freshly made shapes-world pictures."""
    from visionllm_edge.benchmarks.accuracy import evaluate

    judge = partial(
        evaluate,
        task=task,
        images=images,
        seed=seed,
        prompts=prompts,
        size_px=size_px,
        progress=_report,
    )
    # Both are loaded first: a wrong checkpoint is told before minutes of work.
    model = _load(bundle, threads)
    reference = None if checkpoint is None else _load_reference(bundle, checkpoint)
    evaluation = judge(model)
    result = evaluation.to_dict()
    text = _table(evaluation)
    if reference is not None:
        click.echo("eval: the same pictures in torch", err=True)
        by_torch = judge(reference)
        result["torch"] = by_torch.to_dict()
        text += "\n\ntorch, the same pictures\n" + _table(by_torch).partition("\n")[2]
    click.echo(json.dumps(result) if as_json else text)


def _load(bundle: Path, threads: int | None) -> Model:
    from visionllm_edge.runtime import VisionLLM

    model: Model = VisionLLM.load(bundle, threads=threads)
    return model


def _load_reference(bundle: Path, checkpoint: Path) -> Model:
    from visionllm_edge.export.reference import reference_model

    model: Model = reference_model(bundle, checkpoint)
    return model


def _report(done: int, total: int) -> None:
    if done == total or done % max(1, total // 10) == 0:
        click.echo(f"eval: {done}/{total} pictures", err=True)


def _table(evaluation: Evaluation) -> str:
    head = f"{evaluation.task}, {evaluation.images} pictures, seed {evaluation.seed}"
    if evaluation.prompts is not None:
        head += f", prompts by {evaluation.prompts}"
    width = max(len(name) for name in evaluation.metrics)
    rows = [
        f"  {name:<{width}}  {value}"
        if isinstance(value, int)
        else f"  {name:<{width}}  {value:.4f}"
        for name, value in evaluation.metrics.items()
    ]
    pace = f"  ({evaluation.model_s / evaluation.images * 1000:.1f} ms per picture in the model)"
    return "\n".join([head, *rows, pace])
