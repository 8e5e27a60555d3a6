"""Real-size vision stages and their peers (``python -m visionllm_edge.benchmarks.peers.vision``).

CLIP-L/14-336 with its bridge and the Swin-T object decoder, random weights, one process, every
contestant in turns with the same inputs. A contestant whose answer is not torch's, within what its
precision allows, is shown as wrong and gets no time.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from visionllm_edge.benchmarks.environment import describe_environment
from visionllm_edge.benchmarks.foreign_load import ForeignLoad
from visionllm_edge.benchmarks.latency import time_interleaved
from visionllm_edge.benchmarks.peers.vision_contestants import CONTESTANTS, TOLERANCE, Runner
from visionllm_edge.benchmarks.peers.vision_stage import STAGES, PreparedStage, prepare_stages
from visionllm_edge.benchmarks.report import write_report
from visionllm_edge.runtime.errors import EdgeError

__all__ = ["compare_stage", "difference", "markdown"]

_PACKAGES = ("visionllm-edge", "torch", "onnxruntime", "openvino", "nncf", "numpy")
_OURS = {"ours": "ours_is_faster", "ours int8": "ours_int8_is_faster"}
Note = Callable[[str], None]


def difference(got: NDArray[np.generic], true: NDArray[np.generic]) -> float:
    """99.9th percentile of the absolute difference over the tensor's root mean square."""
    wide, exact = got.astype(np.float64), true.astype(np.float64)
    scale = float(np.sqrt(np.mean(exact**2))) or 1.0
    return float(np.quantile(np.abs(wide - exact), 0.999)) / scale


def compare_stage(
    stage: PreparedStage,
    *,
    rounds: int,
    threads: int,
    only: tuple[str, ...] = (),
    note: Note = lambda text: None,
) -> dict[str, Any]:
    """Check every contestant's answer, then time those that are right, in turns.

    Returns:
        Plain JSON types: by contestant its precision, its difference to torch, its times and its
        ratios to ours in fp32 and in int8, or why it has none.
    """
    rows: dict[str, dict[str, Any]] = {}
    right: dict[str, Runner] = {}
    for name, (precision, make) in CONTESTANTS.items():
        if only and name not in only and name not in _OURS:
            continue
        rows[name] = {"precision": precision}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peers' own remarks while they compile
                run = make(stage, threads)
                outputs = run()
        except ImportError as error:
            rows[name]["missing"] = str(error)
            continue
        except Exception as error:  # a peer's own failure is a result, too
            rows[name]["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        worst = max(difference(np.asarray(outputs[k]), v) for k, v in stage.truth.items())
        rows[name]["difference"] = worst
        if worst <= TOLERANCE[precision]:
            right[name] = run
        note(f"{stage.name}: {name}, difference {worst:.2g}")
    with ForeignLoad() as foreign:
        times = time_interleaved(right, rounds=rounds, warmup=2)
    for name, timing in times.timings.items():
        ratios = {key: times.speedup(ours, name) for ours, key in _OURS.items() if ours in right}
        rows[name] |= {"ms": timing.to_dict(), **ratios}
    return {"contestants": rows, "foreign_cores": round(foreign.cores, 3)}


def markdown(result: Mapping[str, Any]) -> str:
    """The table of docs/performance.md."""
    names = list(dict.fromkeys(n for s in result["stages"].values() for n in s["contestants"]))
    lines = [
        f"| | {' | '.join(f'{stage}, ms' for stage in result['stages'])} |",
        f"|---|{'---|' * len(result['stages'])}",
    ]
    for name in names:
        cells = []
        for stage in result["stages"].values():
            row = stage["contestants"].get(name, {})
            if "ms" in row:
                ratios = [f"{row[key]:.2f}x" for key in _OURS.values() if key in row]
                shown = "" if name in _OURS else f" ({', '.join(ratios)})"
                cells.append(f"{row['ms']['median_ms']:.0f}{shown}")
            elif "difference" in row:
                cells.append(f"wrong by {row['difference']:.2g}")
            else:
                cells.append("not installed" if "missing" in row else "fails")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--stage", "stages", multiple=True, type=click.Choice(STAGES), help="Only these.")
@click.option("--only", multiple=True, type=click.Choice(list(CONTESTANTS)), help="Repeatable.")
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON here.")
@click.option("--docs", type=click.Path(path_type=Path), help="Write the Markdown table here.")
def main(
    stages: tuple[str, ...],
    only: tuple[str, ...],
    rounds: int,
    threads: int,
    out: Path | None,
    docs: Path | None,
) -> None:
    """Time the real-size vision stages beside torch, ONNX Runtime and OpenVINO."""

    def note(text: str) -> None:
        click.echo(text, err=True)

    result: dict[str, Any] = {
        "environment": describe_environment(_PACKAGES, threads=threads),
        "rounds": rounds,
        "stages": {},
    }
    try:
        with tempfile.TemporaryDirectory(prefix="visionllm-edge-") as folder:
            note("make random weights, trace and lower")
            for stage in prepare_stages(Path(folder) / "work", stages or STAGES):
                result["stages"][stage.name] = compare_stage(
                    stage, rounds=rounds, threads=threads, only=only, note=note
                )
    except EdgeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(markdown(result))
    if out is not None:
        write_report(out, result)
    if docs is not None:
        docs.write_text(markdown(result), encoding="utf-8")


if __name__ == "__main__":
    main()
