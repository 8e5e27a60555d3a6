"""Ours and other runtimes at one shape (``python -m visionllm_edge.benchmarks.peers.llm``).

Each measurement is a process of its own, with nothing else of ours running. The processes take
turns: every round runs each variant once, beginning with another one each time, so that a slow
spell of the machine hits all alike. Ratios are medians of the rounds' ratios. Every process is
noted with the cores that other work kept busy meanwhile, every round with the memory's read
bandwidth. A runtime whose option is not given is left out and said so.

The models must be of one shape. ``benchmarks.random_llm`` writes its checkpoint, and each runtime's
own tools turn that into its best form.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from visionllm_edge.benchmarks.environment import describe_environment
from visionllm_edge.benchmarks.peers.genai import GENAI
from visionllm_edge.benchmarks.peers.llama_cpp import LLAMA_CPP
from visionllm_edge.benchmarks.peers.measure import Workload
from visionllm_edge.benchmarks.peers.openvino_int4 import OPENVINO
from visionllm_edge.benchmarks.peers.ours import OURS, OURS_NAME
from visionllm_edge.benchmarks.peers.peer import Peer, Run
from visionllm_edge.benchmarks.peers.rounds import Variants, compare, speeds_of
from visionllm_edge.benchmarks.peers.torch_bf16 import TORCH
from visionllm_edge.benchmarks.report import write_report
from visionllm_edge.runtime.errors import ConfigError, EdgeError

__all__ = ["PEERS", "chosen_variants", "summarise"]

PEERS: tuple[Peer, ...] = (OURS, LLAMA_CPP, GENAI, OPENVINO, TORCH)
_PACKAGES = ("visionllm-edge", "onnxruntime", "numpy")


def chosen_variants(
    models: Mapping[str, Sequence[str]], programs: Mapping[str, str], workload: Workload
) -> Variants:
    """Every variant of the runtimes that have a model, by name.

    Args:
        models: by the peer's name; several models of one are several variants.
        programs: by the peer's name; this Python where none is given.
        workload: the same for all.

    Raises:
        ConfigError: nothing to measure.
    """
    out: dict[str, tuple[Run, ...]] = {}
    for peer in PEERS:
        given = models.get(peer.name, ())
        for model in given:
            runs = peer.runs(programs.get(peer.name, sys.executable), model, workload)
            suffix = f" ({Path(model).name})" if len(given) > 1 else ""
            out.update({f"{name}{suffix}": run for name, run in runs.items()})
    if not out:
        options = ", ".join(f"--{peer.name}" for peer in PEERS)
        raise ConfigError(f"peers: expected at least one model, got none. Give one of {options}.")
    return out


def summarise(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of every variant, and ours over each other one.

    Returns:
        ``variants``: by name the medians of ``prefill``, ``decode`` by context, memory and foreign
        load, with the number of rounds; ``ratios``: by one of ours, by other variant, the median of
        the rounds' ratios; ``bandwidth_share`` of ours, by context.
    """
    names = list(rounds[0]["variants"])
    ours = [name for name in names if name.startswith(OURS_NAME)]
    speeds = {name: [speeds_of(one["variants"][name]) for one in rounds] for name in names}
    out: dict[str, Any] = {
        "bandwidth_gb_per_s": statistics.median(one["bandwidth"] for one in rounds) / 1e9,
        "variants": {},
        "ratios": {},
        "bandwidth_share": {},
    }
    for name in names:
        runs = [one["variants"][name] for one in rounds]
        out["variants"][name] = {
            "tokens_per_s": {
                key: statistics.median(one[key] for one in speeds[name]) for key in speeds[name][0]
            },
            "rounds": len(runs),
            "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
            "worst_foreign_cores": max(run["foreign_cores"] for run in runs),
            "version": runs[0].get("version", ""),
        }
    for name in ours:
        out["ratios"][name] = {
            other: {
                key: statistics.median(
                    mine[key] / theirs[key]
                    for mine, theirs in zip(speeds[name], speeds[other], strict=True)
                )
                for key in speeds[name][0]
            }
            for other in names
            if other not in ours
        }
        out["bandwidth_share"][name] = {
            context: statistics.median(
                one["variants"][name]["decode"][context] * read / one["bandwidth"] for one in rounds
            )
            for context, read in rounds[0]["variants"][name]["bytes_per_token"].items()
        }
    return out


def _table(summary: Mapping[str, Any]) -> str:
    variants: Mapping[str, Any] = summary["variants"]
    keys = list(next(iter(variants.values()))["tokens_per_s"])
    lines = [f"{'tokens/s, median':<36}" + "".join(f"{key:>16}" for key in keys) + f"{'MB':>8}"]
    for name, row in variants.items():
        speeds = "".join(f"{row['tokens_per_s'][key]:>16.1f}" for key in keys)
        lines.append(f"{name:<36}{speeds}{row['peak_rss_bytes'] / 1e6:>8.0f}")
    for name, ratios in summary["ratios"].items():
        lines.append(f"{name} over")
        for other, row in ratios.items():
            lines.append(f"  {other:<34}" + "".join(f"{row[key]:>15.2f}x" for key in keys))
    for name, shares in summary["bandwidth_share"].items():
        text = ", ".join(f"{share:.0%} at {context}" for context, share in shares.items())
        bandwidth = summary["bandwidth_gb_per_s"]
        lines.append(f"{name} decodes with {text} of {bandwidth:.1f} GB/s")
    return "\n".join(lines)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Two options for every entry of the list."""
    for peer in reversed(PEERS):
        model = click.option(
            f"--{peer.name}", multiple=True, metavar="PATH", help=f"Model: {peer.model}."
        )
        program = click.option(
            f"--{peer.name}-program", metavar="PATH", help=f"Program: {peer.program}."
        )
        command = model(program(command))
    return command


@click.command()
@_options
@click.option("--rounds", type=click.IntRange(1, 50), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--prompt", type=click.IntRange(1), default=512, show_default=True)
@click.option("--context", "contexts", type=int, multiple=True, default=(64, 1024))
@click.option("--steps", type=click.IntRange(4), default=24, show_default=True)
@click.option("--vocabulary", type=click.IntRange(8), default=32000, show_default=True)
@click.option("--shape", default="tinyllama-1.1b", show_default=True, help="Said in the result.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the JSON to this file.")
def main(
    rounds: int,
    threads: int,
    prompt: int,
    contexts: tuple[int, ...],
    steps: int,
    vocabulary: int,
    shape: str,
    out: Path | None,
    **paths: Any,
) -> None:
    """Time language models of one shape in several runtimes, in turns."""
    workload = Workload(
        prompt=prompt, contexts=contexts, steps=steps, vocabulary=vocabulary, threads=threads
    )
    fields = {peer.name: peer.name.replace("-", "_") for peer in PEERS}
    models = {name: paths[key] for name, key in fields.items() if paths[key]}
    programs = {
        name: paths[f"{key}_program"] for name, key in fields.items() if paths[f"{key}_program"]
    }
    try:
        variants = chosen_variants(models, programs, workload)
        for missing in [name for name in fields if name not in models]:
            click.echo(f"left out: {missing} (no --{missing} was given)", err=True)
        measured = compare(
            variants,
            rounds=rounds,
            threads=threads,
            note=lambda text: click.echo(text, err=True),
        )
    except EdgeError as error:
        raise click.ClickException(str(error)) from error
    summary = summarise(measured)
    result = {
        "environment": describe_environment(_PACKAGES, threads=threads),
        "shape": shape,
        "workload": asdict(workload),
        **summary,
        "rounds": measured,
    }
    click.echo(_table(summary))
    if out is not None:
        write_report(out, result)
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
