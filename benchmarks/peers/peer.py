"""What ``llm.py`` knows of a runtime: which processes give one measurement of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from visionllm_edge.benchmarks.peers.measure import Workload, workload_arguments

__all__ = ["Peer", "Run", "read_last_line", "worker"]


@dataclass(frozen=True)
class Run:
    """One process.

    Attributes:
        command: program and arguments.
        read: its standard output as a part of the measurement: ``prefill`` and ``decode`` in
            tokens per second, ``decode`` by context, and what else there is to say.
        environment: variables to add.
    """

    command: tuple[str, ...]
    read: Callable[[str], dict[str, object]]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """A runtime.

    Attributes:
        name: of the option that gives its model, ``--name``.
        model: what that option wants, for the help text.
        program: what ``--name-program`` wants; it is this Python if it is not given.
        runs: (program, model, workload) -> the processes of each variant, by the variant's name.
    """

    name: str
    model: str
    program: str
    runs: Callable[[str, str, Workload], Mapping[str, tuple[Run, ...]]]


def worker(module: str, program: str, model: str, workload: Workload) -> Run:
    """A Python process that runs one of the modules here."""
    name = f"visionllm_edge.benchmarks.peers.{module}"
    return Run((program, "-m", name, model, *workload_arguments(workload)), read_last_line)


def read_last_line(stdout: str) -> dict[str, object]:
    """The JSON object on the last line."""
    content: dict[str, object] = json.loads(stdout.strip().splitlines()[-1])
    return content
