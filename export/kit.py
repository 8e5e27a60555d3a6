"""Make a build kit: lower a bundle's canonical graphs for a target and write what a device needs.

Neither checkpoint nor torch takes part: a bundle carries its canonical graphs, golden files and the
parity limits for every precision.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from visionllm_edge.export.cache import package_versions
from visionllm_edge.export.calibration import Calibrator
from visionllm_edge.export.canonical import load_canonical
from visionllm_edge.export.check_lowered import Golden as GoldenRun
from visionllm_edge.export.check_lowered import check_lowered
from visionllm_edge.export.kit_kernels import add_kernels
from visionllm_edge.export.lowering import lower, lowered_ports
from visionllm_edge.export.passes.quantize_dequantize import Quantization
from visionllm_edge.export.passes.share_weights import WeightFile
from visionllm_edge.export.stage_precisions import stage_precisions
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.engines.kit_folder import BUILD_FOLDER, Kit, write_kit_plan
from visionllm_edge.runtime.engines.plan import (
    KIT_NAME,
    Golden,
    KitPlan,
    KitTarget,
    NodeForm,
    StagePlan,
)
from visionllm_edge.runtime.engines.profiles import Axes, axis_ranges, cache_rows, profiles_for
from visionllm_edge.runtime.errors import BundleError, ConfigError
from visionllm_edge.runtime.manifest import Manifest, Variant
from visionllm_edge.runtime.targets import QUANTIZED, Target, find_target

__all__ = ["KitOptions", "make_kit"]

_PAST = "past_key_values."
Note = Callable[[str], None]


@dataclass(frozen=True)
class KitOptions:
    """How to make a kit.

    Attributes:
        precision: of all stages; the target's default if None.
        stage_precision: stage -> precision, where it differs.
        plugins: whether our TensorRT plugins may be used.
        context: rows of the decoder's cache; the model's context if None.
        flags: builder flags for every stage.
        calibration: folder of pictures that ranges of int8 and fp8 are measured on; made ones
            if None.
    """

    precision: str | None = None
    stage_precision: Mapping[str, str] = field(default_factory=dict)
    plugins: bool = True
    context: int | None = None
    flags: tuple[str, ...] = ()
    calibration: Path | None = None


def make_kit(
    source: Path,
    output: Path,
    target_name: str,
    options: KitOptions | None = None,
    note: Note = lambda text: None,
) -> Path:
    """Write a kit.

    Args:
        source: a bundle with canonical graphs.
        output: the kit's place. A kit that stands there is replaced; what was built in it is kept
            and reused where the graphs are the same.
        target_name: a row of the target table with a TensorRT backend.
        options: see `KitOptions`.
        note: gets a line per stage.

    Returns:
        The kit's folder.

    Raises:
        EdgeError: the bundle, the target or an option cannot be used, or a graph not be lowered.
    """
    options = options or KitOptions()
    bundle, target = Bundle.open(source, verify=True), find_target(target_name)
    if target.backend == "onnxruntime":
        raise ConfigError(
            f"target '{target.name}': its bundle needs no engines; `visionllm-edge compile` makes "
            "it. Choose a TensorRT target."
        )
    with _new_folder(output) as folder:
        _write(bundle, folder, target, options, note)
    return output


def _write(bundle: Bundle, folder: Path, target: Target, options: KitOptions, note: Note) -> None:
    manifest = bundle.manifest
    ends = {name: spec.ports(name) for name, spec in manifest.stages.items()}
    precisions = stage_precisions(ends, target, options.precision, options.stage_precision)
    calibrator = None
    if any(precision in QUANTIZED for precision in precisions.values()):
        calibrator = Calibrator(bundle, options.calibration, note)
    ranges = axis_ranges(manifest.model, capacity=options.context)
    plans: list[StagePlan] = []
    ports: dict[str, Any] = {}
    reports: dict[str, str] = {}
    (folder / "graphs").mkdir()
    for name, spec in manifest.stages.items():
        precision = precisions[name]
        own = lowered_ports(spec.ports(name), target, precision)
        ports[name] = {
            "inputs": [port.to_dict() for port in own.inputs],
            "outputs": [port.to_dict() for port in own.outputs],
        }
        with WeightFile(folder / "graphs" / f"{name}.weights") as weights:
            for variant in spec.variants:
                quantization = None
                if calibrator is not None and precision in QUANTIZED:
                    quantization = calibrator.calibrate(name, variant.bucket, precision)
                plan = _plan(
                    bundle, name, variant, target, precision, ranges, options, weights, quantization
                )
                plans.append(plan)
                forms = ", ".join(sorted({f"{form.op} as {form.form}" for form in plan.forms}))
                note(f"{plan.name}: {precision}, {forms or 'standard operators only'}")
                if quantization is not None:
                    reports |= _write_report(folder, plan.name, quantization)
    payload = _copy_payload(bundle, folder) | reports
    ops = sorted({op for plan in plans for op in plan.plugin_ops})
    payload |= add_kernels(ops, target.sm, folder, note)
    kit = KitPlan(
        target=KitTarget(
            name=target.name,
            backend=target.backend,
            precision=target.resolve_precision(options.precision),
            sm=target.sm,
            tensorrt=target.tensorrt or None,
            device=target.device,
        ),
        created_by=package_versions(),
        stages=tuple(plans),
        manifest=_template(manifest, target, plans, ports, options),
        payload=payload,
    )
    write_kit_plan(folder, kit)


def _plan(
    bundle: Bundle,
    stage: str,
    variant: Variant,
    target: Target,
    precision: str,
    ranges: Mapping[str, Axes],
    options: KitOptions,
    weights: WeightFile,
    quantization: Quantization | None,
) -> StagePlan:
    model = load_canonical(bundle, stage, variant.bucket)
    forms = lower(
        model,
        target,
        precision=precision,
        plugins=options.plugins,
        quantization=quantization,
        capacity=cache_rows(ranges),
    )
    plan = StagePlan(
        stage=stage,
        graph="",
        engine="",
        precision=precision,
        bucket=variant.bucket,
        forms=tuple(NodeForm(**form.to_dict()) for form in forms),
        flags=options.flags,
    )
    golden, shapes = _golden(bundle, stage, variant, precision, options)
    if quantization is not None and golden is not None:
        _check(bundle, stage, variant, target, quantization)
    relative = f"graphs/{plan.name}.onnx"
    weights.take(model)
    ir.save(model, weights.path.parent / f"{plan.name}.onnx")
    return dataclasses.replace(
        plan,
        graph=relative,
        engine=f"engines/{plan.name}.engine",
        profiles=profiles_for(stage, _input_shapes(model), ranges, examples=shapes),
        golden=golden,
    )


def _check(
    bundle: Bundle, stage: str, variant: Variant, target: Target, quantization: Quantization
) -> None:
    """Refuse a quantised graph that is too far off, before it travels.

    Without plugins: a stripped function cannot run here, and what a plugin computes is not in
    eight bits.
    """
    model = load_canonical(bundle, stage, variant.bucket)
    precision = quantization.precision
    lower(model, target, precision=precision, plugins=False, quantization=quantization)
    check_lowered(model, GoldenRun(bundle, stage), precision=precision)


def _write_report(folder: Path, name: str, quantization: Quantization) -> dict[str, str]:
    """Store how a graph was quantised; returns the payload's entry."""
    relative = f"reports/quantization.{name}.json"
    (folder / "reports").mkdir(exist_ok=True)
    text = json.dumps(quantization.to_dict(), indent=1, allow_nan=False)
    (folder / relative).write_text(text + "\n", encoding="utf-8")
    return {relative: relative}


def _input_shapes(model: ir.Model) -> dict[str, list[int | str]]:
    out: dict[str, list[int | str]] = {}
    for value in model.graph.inputs:
        assert value.name is not None and value.shape is not None, "a lowered graph has both"
        out[value.name] = [
            axis if isinstance(axis, int) else str(axis.value) for axis in value.shape
        ]
    return out


def _golden(
    bundle: Bundle, stage: str, variant: Variant, precision: str, options: KitOptions
) -> tuple[Golden | None, dict[str, tuple[int, ...]]]:
    """What the device compares with, where this variant carries it, and its input shapes."""
    stored = bundle.manifest.stages[stage].parity.get("golden")
    if not isinstance(stored, dict):
        return None, {}
    bucket = stored.get("bucket")
    if (None if bucket is None else tuple(bucket)) != variant.bucket:
        return None, {}
    limits = stored.get("limits", {}).get(precision)
    if not isinstance(limits, dict):
        raise BundleError(
            f"bundle '{bundle.root.name}': stage '{stage}' has no limits for {precision}. Compile "
            "it again with this version of visionllm-edge."
        )
    with np.load(bundle.file(stored["file"]), allow_pickle=False) as arrays:
        shapes = {name[3:]: arrays[name].shape for name in arrays.files if name.startswith("in.")}
    rows = max((shape[2] for name, shape in shapes.items() if name.startswith(_PAST)), default=0)
    if options.context is not None and options.context < rows:
        raise ConfigError(
            f"context {options.context}: expected at least {rows} rows, which the golden run of "
            f"stage '{stage}' fills. Give more."
        )
    return Golden(f"files/{stored['file']}", limits), shapes


def _copy_payload(bundle: Bundle, folder: Path) -> dict[str, str]:
    """Tables, tokenizer and golden files; graphs and reports are of another target."""
    payload = {}
    for relative in bundle.manifest.files:
        if relative.split("/")[0] not in ("stages", "reports"):
            here = f"files/{relative}"
            (folder / here).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(relative), folder / here)
            payload[relative] = here
    return payload


def _template(
    manifest: Manifest,
    target: Target,
    plans: Sequence[StagePlan],
    ports: Mapping[str, Any],
    options: KitOptions,
) -> Mapping[str, object]:
    """The manifest of the bundle-to-be, which the seal completes."""
    content = cast(dict[str, Any], manifest.to_dict())
    content.pop("files")
    content["target"] = {
        "name": target.name,
        "backend": target.backend,
        "precision": target.resolve_precision(options.precision),
    }
    if options.context is not None:
        content["model"]["llm"]["max_positions"] = options.context
    for name, stage in content["stages"].items():
        stage |= ports[name]
        stage["lowering"] = {}
        stage["variants"] = [
            {"bucket": plan.bucket, "model": plan.engine} for plan in plans if plan.stage == name
        ]
        stage["parity"] = {
            key: stage["parity"][key] for key in ("golden", "truth") if key in stage["parity"]
        }
    return content


@contextlib.contextmanager
def _new_folder(output: Path) -> Any:
    """A hidden folder beside the output that takes its place when the block ends well."""
    target = Path(os.path.abspath(output))
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir()):
        raise BundleError(f"'{target.name}' exists and is no folder. Choose another place.")
    if target.is_dir() and any(target.iterdir()) and not (target / KIT_NAME).is_file():
        raise BundleError(
            f"'{target.name}' exists and is no kit, so it is not replaced. Choose another place, "
            "or remove it yourself."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.partial-{secrets.token_hex(6)}"
    partial.mkdir()
    try:
        yield partial
        Kit.open(partial)  # what cannot be read back must not be published
        _replace(target, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(target: Path, partial: Path) -> None:
    """Put a new kit in place of an old one; what was built in the old one moves over."""
    if not target.exists():
        partial.rename(target)
        return
    built = target / BUILD_FOLDER
    if built.is_dir() and not built.is_symlink():
        built.rename(partial / BUILD_FOLDER)
    old = target.parent / f".{target.name}.replaced-{secrets.token_hex(6)}"
    target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
