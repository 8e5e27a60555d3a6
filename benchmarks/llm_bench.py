"""Speed and memory of the language models of bundles, each in a process of its own, in turns."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from visionllm_edge.benchmarks.environment import describe_environment
from visionllm_edge.benchmarks.peers.measure import Workload
from visionllm_edge.benchmarks.peers.ours import OURS
from visionllm_edge.benchmarks.peers.rounds import compare, speeds_of
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import InputError

__all__ = ["CONTEXTS", "PROMPT", "bench_llm", "table"]

PROMPT = 512
CONTEXTS = (64, 1024)
# Behind the longest context: warm-up, the timed steps, and a little.
_SLACK = 16
_PACKAGES = ("visionllm-edge", "onnxruntime", "numpy")


def bench_llm(
    paths: Sequence[Path],
    *,
    prompt: int | None = None,
    contexts: Sequence[int] = (),
    steps: int = 24,
    rounds: int = 3,
    threads: int | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time the bundles, interleaved.

    Args:
        paths: bundles of any family; several are compared with the first.
        prompt: tokens of the timed prompt; None takes 512, or half of the shortest context.
        contexts: tokens in front of the timed ones; empty takes those of 64 and 1024 that fit.
        steps: timed tokens per context and round.
        rounds: processes per bundle.
        threads: of the backend; None leaves it to the backend.
        note: gets a line per process.

    Returns:
        Plain JSON types: ``environment``, ``workload``, ``bandwidth_gb_per_s`` and ``bundles`` by
        path, with medians and the worst memory.

    Raises:
        InputError: a bundle is named twice.
        BundleError: one is no bundle.
        BackendError: a process failed, because a context does not fit for instance.
    """
    names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise InputError(f"bench: expected different bundles, got {', '.join(names)}.")
    specs = [Bundle.open(path, verify=False).manifest.model.llm for path in paths]
    room = min(spec.max_positions for spec in specs) - steps - _SLACK
    workload = Workload(
        prompt=prompt or max(1, min(PROMPT, room // 2)),
        contexts=tuple(contexts) or tuple(n for n in CONTEXTS if n <= room) or (max(1, room // 2),),
        steps=steps,
        vocabulary=min(spec.vocab_size for spec in specs),
        threads=threads or 0,
    )
    variants = {
        name: tuple(
            run for runs in OURS.runs(sys.executable, name, workload).values() for run in runs
        )
        for name in names
    }
    measured = compare(variants, rounds=rounds, threads=threads or os.cpu_count() or 1, note=note)
    bundles = {name: _summary(name, measured) for name in names}
    for spec, bundle in zip(specs, bundles.values(), strict=True):
        bundle |= {"precision": spec.precision, "block_size": spec.block_size, "cache": spec.cache}
    return {
        "environment": describe_environment(_PACKAGES, threads=threads),
        "workload": asdict(workload),
        "rounds": rounds,
        "bandwidth_gb_per_s": statistics.median(one["bandwidth"] for one in measured) / 1e9,
        "bundles": bundles,
    }


def _summary(name: str, measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    runs = [one["variants"][name] for one in measured]
    first = measured[0]["variants"]
    other = next(iter(first))

    speeds = [speeds_of(run) for run in runs]
    out: dict[str, Any] = {
        "tokens_per_s": {key: statistics.median(one[key] for one in speeds) for key in speeds[0]},
        "first_token_s": statistics.median(run["first_token_s"] for run in runs),
        "load_s": statistics.median(run["load_s"] for run in runs),
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
        "weight_bytes": runs[0]["model_bytes"],
        "cache_bytes": runs[0]["cache_bytes"],
        "bandwidth_share": {
            context: statistics.median(
                one["variants"][name]["decode"][context] * read / one["bandwidth"]
                for one in measured
            )
            for context, read in runs[0]["bytes_per_token"].items()
        },
        "worst_foreign_cores": max(run["foreign_cores"] for run in runs),
    }
    if other != name:
        out["speed_over_first"] = {
            key: statistics.median(
                speeds_of(one["variants"][name])[key] / speeds_of(one["variants"][other])[key]
                for one in measured
            )
            for key in speeds[0]
        }
    return out


def table(result: Mapping[str, Any]) -> str:
    """The result for people."""
    workload, bandwidth = result["workload"], result["bandwidth_gb_per_s"]
    lines = []
    for name, row in result["bundles"].items():
        block = f", block {row['block_size']}" if row["block_size"] else ""
        over = row.get("speed_over_first", {})
        lines.append(f"{name}: {row['precision']}{block}, cache {row['cache']}")
        for key, speed in row["tokens_per_s"].items():
            title = f"prefill of {workload['prompt']}" if key == "prefill" else key
            ratio = f"   {over[key]:.2f}x of the first bundle" if over else ""
            share = row["bandwidth_share"].get(key.rpartition(" ")[2])
            use = "" if share is None else f"   {share:.0%} of {bandwidth:.1f} GB/s read bandwidth"
            lines.append(f"  {title:<20}{speed:9.1f} tokens/s{use}{ratio}")
        lines += [
            f"  {'first token after':<20}{row['first_token_s'] * 1000:9.0f} ms",
            f"  {'load':<20}{row['load_s'] * 1000:9.0f} ms",
            f"  {'peak memory':<20}{row['peak_rss_bytes'] / 1e6:9.0f} MB, of which weights "
            f"{row['weight_bytes'] / 1e6:.0f} and cache {row['cache_bytes'] / 1e6:.0f}",
        ]
        if row["worst_foreign_cores"] > 0.1:
            lines.append(
                f"  Other work kept {row['worst_foreign_cores']:.1f} cores busy meanwhile: "
                "measure again on a quiet machine."
            )
    return "\n".join(lines)
