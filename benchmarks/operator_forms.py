"""Forms of one operator on the CPU, in turns: what every such benchmark does around its own cases.

All forms get the same inputs, their answers are compared before any time is taken, and each round
runs every form once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import onnxruntime as ort

from visionllm_edge.benchmarks.environment import describe_environment
from visionllm_edge.benchmarks.latency import InterleavedTimes, time_interleaved
from visionllm_edge.benchmarks.report import write_report
from visionllm_edge.plugins.cpu.library import find_library, instruction_set
from visionllm_edge.runtime.errors import ParityError, PluginError
from visionllm_edge.runtime.ports import Array

__all__ = ["form_command", "form_session", "required_kernels", "time_forms"]

C = TypeVar("C")
Form = Callable[[], Array]
Result = dict[str, Any]


def required_kernels() -> Path:
    """The library of CPU kernels.

    Raises:
        PluginError: there is none.
    """
    library = find_library()
    if library is None:
        raise PluginError(
            "CPU kernels: no library is built or they are turned off, so there is nothing to "
            "compare. Run: python -m visionllm_edge.plugins.cpu.build"
        )
    return library


def form_session(model: bytes, threads: int, library: Path | None) -> ort.InferenceSession:
    """A session as the runtime's backend makes it, with our kernels or with the functions."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def time_forms(
    operator: str,
    forms: Mapping[str, Form],
    limits: Mapping[str, float],
    *,
    truth: str,
    rounds: int,
) -> tuple[dict[str, float], InterleavedTimes]:
    """Compare the answers of all forms, then time them.

    Args:
        operator: its name, for messages.
        forms: what computes the operator, by name.
        limits: largest difference of each form from ``truth``.
        truth: the form that the others are compared with.
        rounds: measured rounds; two more come before.

    Returns:
        The largest difference of each form, and the times.

    Raises:
        ParityError: two forms disagree, so that their times say nothing.
    """
    # A form may give the same array again.
    answers = {name: form().copy() for name, form in forms.items()}
    errors = {
        name: float(np.abs(np.subtract(answer, answers[truth])).max())
        for name, answer in answers.items()
    }
    wrong = {name: error for name, error in errors.items() if not error <= limits[name]}
    if wrong:
        raise ParityError(
            f"{operator}: expected every form near {truth} (limits {dict(limits)}), got {wrong}. "
            "Their times are not compared; build the kernels again."
        )
    return errors, time_interleaved(forms, rounds=rounds, warmup=2)


def form_command(
    cases: Callable[[], Mapping[str, C]],
    compare: Callable[..., Result],
    table: Callable[[Mapping[str, Result]], str],
    *,
    rounds: int,
    packages: tuple[str, ...],
    timer: str,
    about: str,
) -> click.Command:
    """The command that times all cases, prints a table, and the report as one line of JSON.

    Args:
        cases: what to time, by name; asked when the command runs.
        compare: called with a case, the kernels, ``rounds`` and ``threads``.
        table: the table of the cases' results.
        rounds: measured rounds, unless the user says otherwise.
        packages: whose versions the report tells.
        timer: what was timed, in words.
        about: the help text.
    """

    @click.command(help=about)
    @click.option("--rounds", type=click.IntRange(1, 500), default=rounds, help="Measured rounds.")
    @click.option("--threads", type=click.IntRange(1), default=2, help="Threads for every form.")
    @click.option(
        "--out", type=click.Path(path_type=Path), help="Also write the JSON to this file."
    )
    def main(rounds: int, threads: int, out: Path | None) -> None:
        try:
            library = required_kernels()
            environment = {
                **describe_environment(packages, threads=threads),
                "kernels": instruction_set(library),
                "load_average_before": round(os.getloadavg()[0], 2),
                "timer": timer,
            }
            results = {
                name: compare(case, library, rounds=rounds, threads=threads)
                for name, case in cases().items()
            }
        except (ParityError, PluginError, ValueError) as e:
            raise click.ClickException(str(e)) from e
        report = {"environment": environment, "rounds": rounds, "cases": results}
        click.echo(table(results))
        if out is not None:
            write_report(out, report)
        click.echo(json.dumps(report))

    return main
