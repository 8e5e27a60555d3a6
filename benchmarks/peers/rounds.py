"""Run variants in turns, each in a process of its own, and note what else the machine did.

A virtual machine's read bandwidth changes by the minute with what its neighbours do (67 and 38 GB/s
were seen within one comparison), so it is measured before every process and after the last. The
highest counts for the round: a share of it is never better than the truth.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from visionllm_edge.benchmarks.bandwidth import measure_read_bandwidth
from visionllm_edge.benchmarks.peers.peer import Run
from visionllm_edge.benchmarks.peers.process import import_path, run_process

__all__ = ["Measurement", "Note", "Variants", "compare", "speeds_of"]

Variants = Mapping[str, tuple[Run, ...]]
Measurement = dict[str, Any]
Note = Callable[[str], None]


def compare(
    variants: Variants, *, rounds: int, threads: int, note: Note = lambda text: None
) -> list[dict[str, Any]]:
    """Run every variant once per round.

    Returns:
        One entry per round: ``bandwidth`` in bytes per second, the highest of ``bandwidths``, and
        ``variants`` by name.

    Raises:
        BackendError: a process fails.
    """
    names = list(variants)
    out = []
    with tempfile.TemporaryDirectory(prefix="visionllm-edge-") as folder:
        foreign_path = import_path(Path(folder) / "modules")
        for number in range(rounds):
            note(f"round {number + 1}/{rounds}")
            turn = number % len(names)
            measured = {}
            bandwidths = [measure_read_bandwidth(threads).bytes_per_s]
            for name in names[turn:] + names[:turn]:
                measured[name] = _measure(name, variants[name], foreign_path)
                note(f"  {name:<28}{_line(measured[name])}")
                bandwidths.append(measure_read_bandwidth(threads).bytes_per_s)
            slowest, fastest = (edge(bandwidths) / 1e9 for edge in (min, max))
            note(f"  read bandwidth {slowest:.1f} to {fastest:.1f} GB/s")
            out.append(
                {
                    "bandwidth": max(bandwidths),
                    "bandwidths": bandwidths,
                    "variants": {name: measured[name] for name in names},
                }
            )
    return out


def _measure(name: str, runs: Sequence[Run], foreign_path: str) -> Measurement:
    out: Measurement = {"peak_rss_bytes": 0, "foreign_cores": 0.0}
    for run in runs:
        if run.command[0] != sys.executable:
            # Another environment, which has nothing of ours.
            run = replace(run, environment={**run.environment, "PYTHONPATH": foreign_path})
        done = run_process(run.command, name=name, environment=run.environment)
        out |= run.read(done.stdout)
        out["peak_rss_bytes"] = max(out["peak_rss_bytes"], done.peak_rss_bytes)
        out["foreign_cores"] = max(out["foreign_cores"], round(done.foreign_cores, 3))
    return out


def speeds_of(measurement: Mapping[str, Any]) -> dict[str, float]:
    """Tokens per second by what was timed: ``prefill``, ``decode at 64``."""
    decode = {f"decode at {n}": speed for n, speed in measurement["decode"].items()}
    return {"prefill": measurement["prefill"], **decode}


def _line(measurement: Measurement) -> str:
    speeds = "  ".join(f"{key} {value:7.1f}" for key, value in speeds_of(measurement).items())
    peak = measurement["peak_rss_bytes"] / 1e6
    return f"{speeds}  {peak:6.0f} MB  foreign {measurement['foreign_cores']:.2f}"
