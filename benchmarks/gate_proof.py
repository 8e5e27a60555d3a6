"""Is ``bench compare`` right? (``python -m visionllm_edge.benchmarks.gate_proof BUNDLE``).

So many times, a bundle is measured in turns with itself; and as often, with one of its stages made
slower on purpose. The first must never be reported, the second always.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import click

from visionllm_edge.benchmarks.bench.compare import Comparison, compare_results
from visionllm_edge.benchmarks.bench.measurement import Workload
from visionllm_edge.benchmarks.bench.run import BenchOptions
from visionllm_edge.benchmarks.bench.sampling import Budget
from visionllm_edge.benchmarks.bench.versus import bench_versus
from visionllm_edge.benchmarks.environment import describe_environment
from visionllm_edge.benchmarks.report import write_report
from visionllm_edge.runtime.backends.base import KVCache, StageRunner
from visionllm_edge.runtime.errors import EdgeError
from visionllm_edge.runtime.pipelines.stages import Stages
from visionllm_edge.runtime.ports import Array, StagePorts, Tensor

__all__ = ["SlowerStage", "prove"]

_TASK = "detect"
_TOLERANCE = 0.02
_PACKAGES = ("visionllm-edge", "onnxruntime", "numpy")


class SlowerStage:
    """Stages of which one takes longer by a share of its own time, spent busily.

    Args:
        stages: the real ones.
        name: of the slower one.
        share: 0.05 makes it 5 % slower.
    """

    def __init__(self, stages: Stages, name: str, share: float) -> None:
        """Nothing is loaded yet."""
        self._stages, self._name, self._share = stages, name, share
        self._made: dict[int, StageRunner] = {}

    def get(self, name: str, bucket: tuple[int, int] | None = None) -> StageRunner:
        """A stage; see `Stages`."""
        runner = self._stages.get(name, bucket)
        if name != self._name:
            return runner
        return self._made.setdefault(id(runner), _Slower(runner, self._share))


class _Slower:
    def __init__(self, inner: StageRunner, share: float) -> None:
        self._inner, self._share = inner, share

    @property
    def ports(self) -> StagePorts:
        return self._inner.ports

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        begin = time.perf_counter()
        out = self._inner.run(inputs)
        self._wait(begin)
        return out

    def run_kept(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        begin = time.perf_counter()
        out = self._inner.run_kept(inputs)
        self._wait(begin)
        return out

    def new_cache(self, capacity: int) -> KVCache:
        return self._inner.new_cache(capacity)

    def run_with_cache(self, inputs: Mapping[str, Tensor], cache: KVCache) -> dict[str, Array]:
        begin = time.perf_counter()
        out = self._inner.run_with_cache(inputs, cache)
        self._wait(begin)
        return out

    def _wait(self, begin: float) -> None:
        now = time.perf_counter()
        end = now + (now - begin) * self._share
        while time.perf_counter() < end:
            pass


def prove(
    bundle: Path, *, repetitions: int, stage: str, share: float, limit_s: float, threads: int
) -> dict[str, object]:
    """Run both kinds of comparison; returns what was reported.

    Raises:
        BundleError, BackendError: the bundle cannot be loaded or run.
    """
    workload = Workload((128, 128), ("circle", "person"), 8, 0, 0.002, limit_s)
    options = BenchOptions((_TASK,), Budget(0.002, limit_s, 5, (50,)), threads, cold=False)
    rows = []
    for index in range(repetitions):
        for planted in (False, True):
            change = (lambda stages: SlowerStage(stages, stage, share)) if planted else None
            pair = bench_versus(bundle, bundle, workload, options, change=change)
            found = compare_results(*pair)
            rows.append(_row(planted, found, stage))
            click.echo(f"{index + 1}/{repetitions} {rows[-1]}", err=True)
    planted_rows = [row for row in rows if row["planted"]]
    same_rows = [row for row in rows if not row["planted"]]
    return {
        "environment": describe_environment(_PACKAGES, threads=threads),
        "stage": stage,
        "share": share,
        "requests_limit_s": limit_s,
        "planted_reported": sum(bool(row["stage_reported"]) for row in planted_rows),
        "planted": len(planted_rows),
        "same_reported": sum(bool(row["anything_reported"]) for row in same_rows),
        "same": len(same_rows),
        "rows": rows,
    }


def _row(planted: bool, found: Comparison, stage: str) -> dict[str, object]:
    of_stage = next(one for one in found.differences if one.what == f"{_TASK}: {stage}")
    return {
        "planted": planted,
        "ratio": round(of_stage.ratio, 4),
        "low": round(of_stage.low, 4),
        "high": round(of_stage.high, 4),
        "stage_reported": of_stage.beyond(_TOLERANCE),
        "anything_reported": [one.what for one in found.slower(_TOLERANCE)],
    }


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--repetitions", type=click.IntRange(1), default=20, show_default=True)
@click.option("--stage", default="det_encoder", show_default=True, help="Which one to slow down.")
@click.option("--share", type=float, default=0.05, show_default=True, help="By how much.")
@click.option("--limit", type=float, default=12.0, show_default=True, help="Seconds of each.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON here.")
def main(
    bundle: Path,
    repetitions: int,
    stage: str,
    share: float,
    limit: float,
    threads: int,
    out: Path | None,
) -> None:
    """Plant a slower stage in BUNDLE, and nothing, in turns; say what was reported."""
    try:
        result = prove(
            bundle,
            repetitions=repetitions,
            stage=stage,
            share=share,
            limit_s=limit,
            threads=threads,
        )
    except EdgeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"planted {share:.0%} in {stage}: reported {result['planted_reported']} of "
        f"{result['planted']}; nothing planted: reported {result['same_reported']} of "
        f"{result['same']}"
    )
    if out is not None:
        write_report(out, result)


if __name__ == "__main__":
    main()
