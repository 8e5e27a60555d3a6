"""Build a kit: every stage in its own process, then check, then seal.

Each finished stage leaves its engine, its log and a record; a second call takes over what is still
good and builds the rest. Nothing but the kit, numpy, this package and TensorRT is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from visionllm_edge.runtime.bundle import sha256_of_file
from visionllm_edge.runtime.engines.build import run_build, run_check
from visionllm_edge.runtime.engines.cache import EngineCache
from visionllm_edge.runtime.engines.gpu import Gpu, NoGpu, find_gpu
from visionllm_edge.runtime.engines.kit_folder import Kit
from visionllm_edge.runtime.engines.plan import StagePlan
from visionllm_edge.runtime.engines.plugin_loading import plugin_digests
from visionllm_edge.runtime.engines.progress import BuildProgress
from visionllm_edge.runtime.engines.record import (
    BuildKey,
    GoldenResult,
    StageRecord,
    load_record,
    plan_digest,
    read_record,
    write_record,
)
from visionllm_edge.runtime.engines.request import BuildRequest, CheckRequest
from visionllm_edge.runtime.engines.seal import Builder, seal
from visionllm_edge.runtime.engines.tensorrt_module import PACKAGES, TensorRT, load
from visionllm_edge.runtime.errors import BackendError, BundleError
from visionllm_edge.runtime.ports import Port, StagePorts
from visionllm_edge.runtime.targets import Target
from visionllm_edge.runtime.typed_json import FieldError, object_from_json

__all__ = ["BuildOptions", "KitReport", "build_kit", "check_machine", "kit_status"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """How to build a kit.

    Attributes:
        stand_in: module to build with instead of the target's, to try a kit without its device.
        stages: names of stages to build; all if empty. Nothing is sealed from a part.
        libraries: shared libraries with plugins, instead of the Python classes.
        cache: where engines are kept between kits.
        workspace_bytes: memory limit of the builder.
        verbose: keep every message of the builder in the logs.
    """

    stand_in: str | None = None
    stages: tuple[str, ...] = ()
    libraries: tuple[Path, ...] = ()
    cache: EngineCache | None = None
    workspace_bytes: int | None = None
    verbose: bool = False


@dataclass(frozen=True)
class KitReport:
    """What a build did: its records in the order of the plan, and the bundle if one was sealed."""

    records: tuple[StageRecord, ...]
    bundle: Path | None
    seconds: float
    device: str

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return {
            "bundle": None if self.bundle is None else str(self.bundle),
            "seconds": round(self.seconds, 2),
            "device": self.device,
            "stages": [record.to_dict() for record in self.records],
        }


def build_kit(
    folder: Path,
    output: Path | None,
    options: BuildOptions | None = None,
    progress: BuildProgress | None = None,
) -> KitReport:
    """Build what is not built yet and seal the bundle.

    Args:
        folder: the kit.
        output: the bundle's place; None builds without sealing.
        options: see `BuildOptions`.
        progress: gets a step per stage; silent by default.

    Raises:
        EdgeError: the kit is damaged, does not fit this machine, or a stage cannot be built or is
            wrong. Finished stages are kept.
    """
    options, progress = options or BuildOptions(), progress or BuildProgress(silent=True)
    kit = Kit.open(folder)
    chosen = kit.plan.selected(options.stages)
    trt = load(options.stand_in or kit.plan.target.backend)
    gpu = find_gpu()
    key = _build_key(kit, trt, gpu, options)
    progress.total = len(chosen) + (output is not None)
    records = []
    with kit.building():
        for plan in chosen:
            records.append(_build_stage(kit, plan, key, trt, gpu, options, progress))
        bundle = None
        if output is not None and len(chosen) == len(kit.plan.stages):
            kit.verify_rest()
            bundle = seal(kit, records, output, _builder(kit, trt, gpu, options))
            progress.step(f"sealed {output.name}")
        elif output is not None:
            progress.note(f"{output.name} is not sealed: only some stages were asked for")
    return KitReport(tuple(records), bundle, progress.elapsed_s, key.device)


def check_machine(target: Target) -> None:
    """Refuse a machine that cannot build for a target, before a kit is made for nothing.

    Raises:
        BackendError: no builder of that release, or not the device that it has to run on.
    """
    trt = load(target.backend)
    _check_release(target.tensorrt or None, trt)
    _check_device(target.name, target.sm, find_gpu(), target.backend)


def kit_status(folder: Path) -> dict[str, StageRecord | None]:
    """The record of every stage as it stands in the kit; None where none is good any more."""
    kit = Kit.open(folder)
    out: dict[str, StageRecord | None] = {}
    for plan in kit.plan.stages:
        path = kit.built(plan.name, "json")
        stored = load_record(path)
        if stored is not None and stored.plan == _plan_digest(kit, plan):
            out[plan.name] = read_record(path, kit.built(plan.name, "engine"), stored.key)
        else:
            out[plan.name] = None
    return out


def _plan_digest(kit: Kit, plan: StagePlan) -> str:
    return plan_digest(plan, kit.plan.files[plan.graph].sha256)


def _build_key(kit: Kit, trt: TensorRT, gpu: Gpu | NoGpu, options: BuildOptions) -> BuildKey:
    """Refuse a machine that cannot build this kit; else say what engines will depend on."""
    target = kit.plan.target
    if options.stand_in is None:
        _check_release(target.tensorrt, trt)
        _check_device(target.name, target.sm, gpu, trt.backend)
    kernels = {op: kit.file(path) for op, path in _kernels(kit).items()}
    return BuildKey(
        backend=trt.backend,
        version=trt.version,
        sm=_asked_sm(kit, trt, options) or ((gpu.sm,) if isinstance(gpu, Gpu) else ()),
        device=gpu.name if isinstance(gpu, Gpu) else "no GPU",
        plugins=plugin_digests(_plugin_ops(kit), kernels, options.libraries),
        workspace_bytes=options.workspace_bytes,
    )


def _check_release(expected: str | None, trt: TensorRT) -> None:
    if expected is None:
        return
    wanted, got = expected.split("."), trt.version.split(".")
    if wanted[0] != got[0]:
        raise BackendError(
            f"kit: made for {PACKAGES[trt.backend]} {expected}, this machine has {trt.version}, "
            "whose parser reads the graphs in another way. Make a kit for a target of that release."
        )
    if wanted[:2] != got[:2]:
        _log.warning(
            "the kit is made for %s %s, this machine has %s; the parser's log is checked",
            PACKAGES[trt.backend],
            expected,
            trt.version,
        )


def _check_device(name: str, sm: tuple[int, ...], gpu: Gpu | NoGpu, backend: str) -> None:
    if isinstance(gpu, NoGpu):
        if backend == "tensorrt":
            raise BackendError(
                f"kit: TensorRT builds on the device of target '{name}', and here "
                f"{gpu.reason}. Make a kit and build it there; or try the kit here with another "
                "builder: kit build --with tensorrt_rtx."
            )
    elif backend == "tensorrt" and sm and gpu.sm not in sm:
        raise BackendError(
            f"kit: target '{name}' has compute capability "
            f"{', '.join(map(_dotted, sm))}, this machine's {gpu.name} has "
            f"{_dotted(gpu.sm)}. Make a kit for its family."
        )


def _build_stage(
    kit: Kit,
    plan: StagePlan,
    build_key: BuildKey,
    trt: TensorRT,
    gpu: Gpu | NoGpu,
    options: BuildOptions,
    progress: BuildProgress,
) -> StageRecord:
    key = build_key.of(plan, kit.verify_stage(plan))
    engine, path = kit.built(plan.name, "engine"), kit.built(plan.name, "json")
    record = read_record(path, engine, key)
    how = "built before"
    if record is None and options.cache is not None:
        record = options.cache.get(key, engine)
        how = "taken from the engine cache"
        if record is not None:
            never = GoldenResult("not run", "not asked for")
            record = replace(record, name=plan.name, reused=True, golden=never)
    if record is None:
        record = _build_anew(kit, plan, key, build_key, trt, options, progress)
        how = f"parsed in {record.parse_s:.1f} s, built in {record.build_s:.1f} s"
        if options.cache is not None:
            options.cache.put(record, engine)
    record = _checked(kit, plan, record, trt, gpu, options)
    write_record(path, record)
    progress.step(
        f"{plan.name}: {how}, {record.engine_bytes / 1e6:.1f} MB, "
        f"peak memory {record.peak_rss_bytes / 1e6:.0f} MB, golden {record.golden.status}"
    )
    return record


def _build_anew(
    kit: Kit,
    plan: StagePlan,
    key: str,
    build_key: BuildKey,
    trt: TensorRT,
    options: BuildOptions,
    progress: BuildProgress,
) -> StageRecord:
    engine, partial = kit.built(plan.name, "engine"), kit.built(plan.name, "engine.partial")
    kit.built(plan.name, "json").unlink(missing_ok=True)
    request = _request(kit, plan, partial, trt, options)
    try:
        answer = run_build(
            request, phase=lambda text, done, total: progress.phase(plan.name, text, done, total)
        )
        record = StageRecord(
            name=plan.name,
            key=key,
            plan=_plan_digest(kit, plan),
            backend=trt.backend,
            version=trt.version,
            device=build_key.device,
            engine_sha256=sha256_of_file(partial),
            engine_bytes=answer.engine_bytes,
            parse_s=answer.parse_s,
            build_s=answer.build_s,
            peak_rss_bytes=answer.peak_rss_bytes,
            layers=answer.layers,
            plugins=answer.plugins,
            functions=answer.functions,
        )
        partial.replace(engine)
    finally:
        partial.unlink(missing_ok=True)
    return record


def _request(
    kit: Kit, plan: StagePlan, engine: Path, trt: TensorRT, options: BuildOptions
) -> BuildRequest:
    source = "library" if options.libraries else "python"
    return BuildRequest(
        plan=plan,
        root=str(kit.root),
        backend=trt.backend,
        log=str(kit.built(plan.name, "log")),
        engine=str(engine),
        sm=_asked_sm(kit, trt, options),
        timing_cache=str(kit.built("timing", "cache")),
        plugins=source if plan.plugin_ops else "none",
        libraries=tuple(str(path) for path in options.libraries),
        kernels={op: str(kit.file(path)) for op, path in _kernels(kit).items()},
        workspace_bytes=options.workspace_bytes,
        verbose=options.verbose,
    )


def _checked(
    kit: Kit,
    plan: StagePlan,
    record: StageRecord,
    trt: TensorRT,
    gpu: Gpu | NoGpu,
    options: BuildOptions,
) -> StageRecord:
    """The record with the comparison, where it can be made and was not made yet."""
    if plan.golden is None:
        result = GoldenResult("not run", "another size of this stage carries the golden file")
    elif isinstance(gpu, NoGpu):
        result = GoldenResult("not run", f"not run on a device: {gpu.reason}")
    elif record.golden.status == "passed" and record.plan == _plan_digest(kit, plan):
        result = record.golden
    else:
        kit.verify_file(plan.golden.file)
        ports = _ports(kit, plan)
        engine = kit.built(plan.name, "engine")
        result = run_check(
            CheckRequest(
                build=_request(kit, plan, engine, trt, options),
                engine_sha256=record.engine_sha256,
                golden=str(kit.file(plan.golden.file)),
                inputs=ports.inputs,
                outputs=ports.outputs,
            )
        )
    return replace(record, golden=result, plan=_plan_digest(kit, plan))


def _ports(kit: Kit, plan: StagePlan) -> StagePorts:
    try:
        stage = cast(dict[str, dict[str, object]], kit.plan.manifest["stages"])[plan.stage]
        return StagePorts(
            plan.stage,
            object_from_json(tuple[Port, ...], stage["inputs"]),
            object_from_json(tuple[Port, ...], stage["outputs"]),
        )
    except (KeyError, TypeError, FieldError) as e:
        raise BundleError(f"kit: stage {plan.stage!r} has no ports in the manifest ({e})") from e


def _asked_sm(kit: Kit, trt: TensorRT, options: BuildOptions) -> tuple[int, ...]:
    """A stand-in builds for what it knows; enterprise TensorRT for the device it runs on."""
    if options.stand_in is not None or trt.backend != "tensorrt_rtx":
        return ()
    return kit.plan.target.sm


def _builder(kit: Kit, trt: TensorRT, gpu: Gpu | NoGpu, options: BuildOptions) -> Builder:
    target = kit.plan.target
    wanted = PACKAGES.get(target.backend, target.backend)
    return Builder(
        backend=trt.backend,
        product=trt.product,
        version=trt.version,
        device=gpu.name if isinstance(gpu, Gpu) else None,
        no_device=None if isinstance(gpu, Gpu) else gpu.reason,
        stands_in_for=None
        if options.stand_in is None
        else " ".join(filter(None, (wanted, target.tensorrt))),
        libraries=options.libraries,
    )


def _plugin_ops(kit: Kit) -> tuple[str, ...]:
    return tuple(sorted({op for plan in kit.plan.stages for op in plan.plugin_ops}))


def _kernels(kit: Kit) -> Mapping[str, str]:
    """Operator -> its compiled kernels in the kit, for the first compute capability there."""
    out: dict[str, str] = {}
    for path in sorted(kit.plan.files):
        folder, _, name = path.rpartition("/")
        if folder == "plugins" and name.endswith(".cubin"):
            out.setdefault(name.split(".")[0], path)
    return out


def _dotted(sm: int) -> str:
    return f"{sm // 10}.{sm % 10}"
