"""Turn a built kit into a bundle: engines in place of graphs, and what is known about them.

The bundle says honestly what was checked: an engine that no device has run is marked `not run on a
device`, and one that another builder made in place of the target's is marked as a stand-in.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionllm_edge.runtime.bundle import BundleWriter
from visionllm_edge.runtime.engines.kit_folder import Kit
from visionllm_edge.runtime.engines.plan import Profile
from visionllm_edge.runtime.engines.record import StageRecord
from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.typed_json import json_from_object

__all__ = ["BUILD_REPORT", "NOT_RUN", "Builder", "seal"]

BUILD_REPORT = "reports/build.json"
NOT_RUN = "not run on a device"


@dataclass(frozen=True)
class Builder:
    """What built the engines, and where.

    Attributes:
        backend: module name; the sealed bundle is loaded with it.
        product: name and version in words.
        version: of the module.
        device: name of the GPU, None without one.
        no_device: why there is none.
        stands_in_for: product that the kit was made for, if another one built it.
        libraries: plugin libraries, which go into the bundle.
    """

    backend: str
    product: str
    version: str
    device: str | None
    no_device: str | None
    stands_in_for: str | None = None
    libraries: tuple[Path, ...] = ()


def seal(kit: Kit, records: Sequence[StageRecord], output: Path, builder: Builder) -> Path:
    """Write the bundle, all or nothing.

    Args:
        kit: with an engine for every stage in its build folder.
        records: one per stage of the plan.
        output: the bundle's place; an older bundle there is replaced at the very end.
        builder: what built the engines.

    Raises:
        BundleError: a record is missing, or the manifest does not fit what was built.
    """
    by_name = {record.name: record for record in records}
    missing = [plan.name for plan in kit.plan.stages if plan.name not in by_name]
    if missing:
        raise BundleError(f"kit: stage {missing[0]!r} is not built, so nothing is sealed")
    with BundleWriter(output) as writer:
        for plan in kit.plan.stages:
            writer.add_file(plan.engine, kit.built(plan.name, "engine"))
        for there, here in kit.plan.payload.items():
            writer.add_file(there, kit.file(here))
        for library in builder.libraries:
            writer.add_file(f"plugins/{library.name}", library)
        report = _report(kit, by_name, builder)
        text = json.dumps(report, indent=1, allow_nan=False) + "\n"
        writer.add_bytes(BUILD_REPORT, text.encode("utf-8"))
        return writer.commit(_manifest(kit, by_name, builder))


def _manifest(kit: Kit, records: Mapping[str, StageRecord], builder: Builder) -> dict[str, object]:
    manifest: dict[str, Any] = copy.deepcopy(dict(kit.plan.manifest))
    manifest["target"]["backend"] = builder.backend
    manifest["created_by"] |= {builder.backend: builder.version}
    if builder.stands_in_for is not None:
        manifest["created_by"]["stand-in"] = f"{builder.product} for {builder.stands_in_for}"
    for name, stage in manifest["stages"].items():
        plans = [plan for plan in kit.plan.stages if plan.stage == name]
        stage["lowering"] = {plan.engine: json_from_object(plan.forms) for plan in plans}
        stage["parity"] = _parity(stage.get("parity", {}), plans, records, builder)
        limits = _limits([profile for plan in plans for profile in plan.profiles])
        if limits:
            stage["limits"] = limits
    return manifest


def _limits(profiles: Sequence[Profile]) -> dict[str, object]:
    """What no profile goes beyond, so that a question can be refused before an engine is loaded."""
    out: dict[str, object] = {}
    for name in {name: None for profile in profiles for name in profile.shapes}:
        ranges = [profile.shapes[name] for profile in profiles if name in profile.shapes]
        low = [min(sides) for sides in zip(*(one.min for one in ranges), strict=True)]
        high = [max(sides) for sides in zip(*(one.max for one in ranges), strict=True)]
        if low != high:
            out[name] = {"min": low, "max": high}
    return out


def _parity(
    before: Mapping[str, Any], plans: Sequence[Any], records: Mapping[str, StageRecord], b: Builder
) -> dict[str, object]:
    """Golden files and limits stay; what the graphs of another target were worth does not."""
    passed = [plan for plan in plans if records[plan.name].golden.status == "passed"]
    status = f"golden outputs passed on {b.device}" if passed else NOT_RUN
    reasons = {plan.engine: json_from_object(records[plan.name].golden) for plan in plans}
    kept = {key: before[key] for key in ("golden", "truth") if key in before}
    return {**kept, "precision": plans[0].precision, "status": status, "engines": reasons}


def _report(kit: Kit, records: Mapping[str, StageRecord], builder: Builder) -> dict[str, object]:
    return {
        "target": json_from_object(kit.plan.target),
        "builder": builder.product,
        "stands_in_for": builder.stands_in_for,
        "device": builder.device or f"none: {builder.no_device}",
        "kit_created_by": dict(kit.plan.created_by),
        "stages": [
            {
                "precision": plan.precision,
                "flags": list(plan.flags),
                "profiles": json_from_object(plan.profiles),
                **records[plan.name].to_dict(),
            }
            for plan in kit.plan.stages
        ],
    }
