"""How good the tiny checkpoint is: every task of its bundle, judged once, into one file.

Run as ``python -m visionllm_edge.benchmarks.tiny_metrics BUNDLE -o metrics.json``. The file stands
beside the weights; what is wanted of them stands in ``export/tiny/README.md``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import click

from visionllm_edge.benchmarks.accuracy import Prompts, evaluate
from visionllm_edge.benchmarks.report import write_report
from visionllm_edge.runtime import VisionLLM
from visionllm_edge.runtime.errors import EdgeError

__all__ = ["RUNS", "Run", "measure"]


class Run(NamedTuple):
    """One evaluation.

    Attributes:
        name: in the file.
        task: as ``eval`` names it.
        images: pictures; with too few of them seeds differ by more than models do.
        seed: of the pictures, none of which training has seen.
        prompts: how objects are named.
    """

    name: str
    task: str
    images: int
    seed: int
    prompts: Prompts = "shape"


RUNS = (
    Run("segment", "segment", 1000, 2026),
    Run("phrase", "segment", 400, 2027, "phrase"),
    Run("vqa", "vqa", 400, 2026),
    Run("caption", "caption", 400, 2026),
    Run("region", "region", 200, 2026),
    Run("interactive", "interactive", 200, 2026),
    Run("pose", "pose", 200, 2026),
    Run("grounded-caption", "grounded-caption", 200, 2026),
    Run("semantic", "semantic", 200, 2026),
    Run("generate", "generate", 100, 2026),
    Run("edit", "edit", 100, 2026),
)
"""What is recorded, in this order."""

_DIGITS = 4
_WHAT = "visionllm-edge eval on the compiled bundle (cpu, fp32); pictures never trained on"


def measure(model: Any, run: Run) -> dict[str, Any]:
    """One run as it stands in the file: numbers with four digits.

    Args:
        model: a loaded bundle.
        run: what to ask.
    """
    found = evaluate(model, run.task, images=run.images, seed=run.seed, prompts=run.prompts)
    metrics = {
        name: value if isinstance(value, int) else round(value, _DIGITS)
        for name, value in found.metrics.items()
    }
    result = found.to_dict() | {"metrics": metrics}
    del result["model_s"]  # of this machine
    return result


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="JSON file.")
@click.option("--only", multiple=True, type=click.Choice([run.name for run in RUNS]))
@click.option("--threads", type=click.IntRange(1), help="Of the runtime [default: all].")
def main(bundle: Path, out: Path, only: tuple[str, ...], threads: int | None) -> None:
    """Judge all tasks of BUNDLE; with --only, other runs that the file holds are kept."""
    runs: dict[str, Any] = {}
    if only and out.exists():
        runs = json.loads(out.read_text(encoding="utf-8"))["runs"]
    try:
        model = VisionLLM.load(bundle, threads=threads)
        for run in RUNS:
            if only and run.name not in only:
                continue
            click.echo(f"{run.name}: {run.images} pictures", err=True)
            runs[run.name] = measure(model, run)
            click.echo(json.dumps(runs[run.name]["metrics"]))
            in_order = {known.name: runs[known.name] for known in RUNS if known.name in runs}
            write_report(out, {"what": _WHAT, "runs": in_order})
    except EdgeError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
