"""What the build of one stage leaves behind, and the key that says whether it is still good."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from visionllm_edge.runtime.bundle import sha256_of_file
from visionllm_edge.runtime.engines.plan import StagePlan
from visionllm_edge.runtime.typed_json import (
    Count,
    FieldError,
    json_from_object,
    object_from_json,
)

__all__ = [
    "BuildKey",
    "GoldenResult",
    "StageRecord",
    "load_record",
    "plan_digest",
    "read_record",
    "write_record",
]

# Raised when the way of building changes so that older engines must not be taken.
_BUILDER = 1


@dataclass(frozen=True)
class GoldenResult:
    """How an engine compares with the golden outputs.

    Attributes:
        status: `passed`, or `not run`.
        reason: why it was not run, else None.
        worst: output with the largest share of its limit.
        share: error of that output divided by its limit.
        errors: largest absolute error per output.
    """

    status: str
    reason: str | None = None
    worst: str | None = None
    share: float | None = None
    errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StageRecord:
    """One built engine.

    Attributes:
        name: stage and bucket.
        key: of everything that went in; another key means another engine.
        plan: digest of the kit's plan for this stage, golden limits included.
        backend: module that built it.
        version: of that module.
        device: name of the GPU it was built on, or `no GPU`.
        engine_sha256: of the engine file.
        engine_bytes: its size.
        parse_s: seconds in the parser.
        build_s: seconds in the builder.
        peak_rss_bytes: largest resident memory of the process that built it.
        layers: layers of the network after parsing.
        plugins: nodes that became a plugin.
        functions: nodes that became a function.
        reused: taken from the engine cache instead of being built.
        golden: comparison with the golden outputs.
    """

    name: str
    key: str
    plan: str
    backend: str
    version: str
    device: str
    engine_sha256: str
    engine_bytes: Count
    parse_s: float
    build_s: float
    peak_rss_bytes: Count
    layers: Count
    plugins: int
    functions: int
    reused: bool = False
    golden: GoldenResult = field(default_factory=lambda: GoldenResult("not run", "not asked for"))

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return cast(dict[str, object], json_from_object(self))


@dataclass(frozen=True)
class BuildKey:
    """Where and with what an engine is built: the part of the key that stages share.

    Attributes:
        backend: module name.
        version: of the module.
        sm: compute capabilities that are asked for, or the device's own.
        device: name of the GPU; engines of the same SM but another GPU are tuned differently.
        plugins: operator -> digest of what implements it.
        workspace_bytes: memory limit of the builder, None for its default.
    """

    backend: str
    version: str
    sm: tuple[int, ...]
    device: str
    plugins: Mapping[str, str]
    workspace_bytes: int | None = None

    def of(self, plan: StagePlan, files: Mapping[str, str]) -> str:
        """The key of one stage.

        Args:
            plan: what to build.
            files: digest of the graph and of every file it reads weights from.
        """
        content = {
            "builder": _BUILDER,
            "backend": self.backend,
            "version": self.version,
            "sm": self.sm,
            "device": self.device,
            "plugins": {op: self.plugins.get(op) for op in plan.plugin_ops},
            "workspace_bytes": self.workspace_bytes,
            "files": sorted(files.values()),
            "precision": plan.precision,
            "flags": sorted(plan.flags),
            "profiles": json_from_object(plan.profiles),
            "forms": json_from_object(plan.forms),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def plan_digest(plan: StagePlan, graph_sha256: str) -> str:
    """What a record is about, whatever builds it: the stage's plan and its graph."""
    content = {"plan": json_from_object(plan), "graph": graph_sha256}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_record(path: Path) -> StageRecord | None:
    """A stored record, whatever it is about; None if there is none."""
    try:
        return object_from_json(StageRecord, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, FieldError):
        return None  # not built yet, or torn by an interruption: it is built again


def read_record(path: Path, engine: Path, key: str) -> StageRecord | None:
    """The record of a finished stage; None if there is none that fits key and engine."""
    record = load_record(path)
    if record is None:
        return None
    good = (
        record.key == key
        and engine.is_file()
        and not engine.is_symlink()
        and engine.stat().st_size == record.engine_bytes
        and sha256_of_file(engine) == record.engine_sha256
    )
    return record if good else None


def write_record(path: Path, record: StageRecord) -> None:
    """Store a record; it appears whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(record.to_dict(), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
