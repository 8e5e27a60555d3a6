"""What a child process is told and what it answers: two JSON files, nothing else.

A child builds each engine, and another runs it on its golden inputs, because a parser, a builder or
an engine that aborts takes its process along.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from visionllm_edge.runtime.engines.plan import StagePlan
from visionllm_edge.runtime.engines.record import GoldenResult
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.ports import Port
from visionllm_edge.runtime.typed_json import (
    Count,
    FieldError,
    json_from_object,
    object_from_json,
)

__all__ = [
    "PLUGIN_SOURCES",
    "BuildAnswer",
    "BuildRequest",
    "CheckAnswer",
    "CheckRequest",
    "read_json",
    "write_json",
]

PLUGIN_SOURCES = ("python", "library", "none")
"""Where plugins come from: our Python classes, a shared library, or nowhere (graphs without)."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class BuildRequest:
    """One engine to build.

    Attributes:
        plan: profiles, flags and forms.
        root: the kit; graph and weights must lie inside.
        backend: module to build with.
        sm: compute capabilities to ask for where the module takes a list.
        log: file that gets the builder's messages.
        engine: file that gets the engine.
        timing_cache: read if it is there, written after the build.
        plugins: a value of `PLUGIN_SOURCES`.
        libraries: shared libraries with plugins.
        kernels: operator -> compiled kernels for the Python plugin.
        workspace_bytes: memory limit of the builder.
        verbose: keep every message of the builder.
    """

    plan: StagePlan
    root: str
    backend: str
    log: str
    engine: str
    sm: tuple[Count, ...] = ()
    timing_cache: str | None = None
    plugins: str = "none"
    libraries: tuple[str, ...] = ()
    kernels: Mapping[str, str] = field(default_factory=dict)
    workspace_bytes: Count | None = None
    verbose: bool = False


@dataclass(frozen=True)
class BuildAnswer:
    """What came of it; `error` is a message for the user, and the numbers are 0 then.

    `kind` names the class of the error, which the starting process raises again.
    """

    error: str | None = None
    kind: str | None = None
    version: str = "unknown"
    engine_bytes: int = 0
    parse_s: float = 0.0
    build_s: float = 0.0
    peak_rss_bytes: int = 0
    layers: int = 0
    plugins: int = 0
    functions: int = 0


@dataclass(frozen=True)
class CheckRequest:
    """One engine to run on its golden inputs.

    Attributes:
        build: as it was built: plan, engine, log and plugins.
        engine_sha256: what the engine's bytes must be.
        golden: file with inputs and true outputs.
        inputs: ports of the stage.
        outputs: ports of the stage.
    """

    build: BuildRequest
    engine_sha256: str
    golden: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class CheckAnswer:
    """How it compared, or the error as in `BuildAnswer`."""

    error: str | None = None
    kind: str | None = None
    result: GoldenResult | None = None


def write_json(path: Path, value: BuildRequest | BuildAnswer | CheckRequest | CheckAnswer) -> None:
    """Store one of them."""
    path.write_text(json.dumps(json_from_object(value), indent=1), encoding="utf-8")


def read_json(kind: type[_T], path: Path) -> _T:
    """Read one of them.

    Raises:
        BackendError: not there, torn, or of another version.
    """
    try:
        return object_from_json(kind, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, FieldError) as e:
        raise BackendError(f"{path.name}: not what a build process writes ({e})") from e
