"""Bundles that a sweep compiles, and the files that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from visionllm_edge.benchmarks.bench.measurement import write_result
from visionllm_edge.benchmarks.bench.page.front import front_plot
from visionllm_edge.benchmarks.bench.sweep import Point, sweep_rows
from visionllm_edge.benchmarks.bench.table_text import markdown

__all__ = ["compiler", "write_sweep"]


def compiler(checkpoint: Path, work: Path) -> Callable[[str, int], Path]:
    """Compiles a checkpoint by precision and block (0 for none) into the work folder.

    Raises:
        EdgeError: when called, if the checkpoint cannot be compiled so.
    """

    def compile_bundle(precision: str, block: int) -> Path:
        from visionllm_edge.export.cache import StageCache
        from visionllm_edge.export.compile import compile_checkpoint
        from visionllm_edge.export.quantize.policy import LlmPrecision

        llm = LlmPrecision.from_options(precision, block or None, None, None)
        output = work / "bundles" / f"{precision}-{block}"
        cache = StageCache(work / "cache")
        return compile_checkpoint(checkpoint, output, cache=cache, llm=llm).bundle

    return compile_bundle


def write_sweep(points: Sequence[Point], work: Path) -> list[Path]:
    """Write each point's result, a Markdown table, and a picture per task."""
    paths = []
    for index, point in enumerate(points):
        paths.append(work / "results" / f"{index:03d}.json")
        write_result(paths[-1], point.result)
    texts = {"sweep.md": markdown(sweep_rows(points)) + "\n"}
    for task in points[0].result.tasks:
        texts[f"{task.name}.svg"] = front_plot(points, task.name)
    for name, content in texts.items():
        paths.append(work / name)
        paths[-1].write_text(content, encoding="utf-8")
    return paths
