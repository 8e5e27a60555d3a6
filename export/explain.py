"""The plan of a build without building: every stage lowered in memory, and what came of it.

What is said here is what `build` and `kit make` do, because it is the same lowering; what a builder
makes of the graph afterwards is not known before it ran.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from visionllm_edge.export.calibration import Calibrator
from visionllm_edge.export.canonical import load_canonical
from visionllm_edge.export.check_lowered import Golden, check_lowered
from visionllm_edge.export.lowering import KEPT, LoweredNode, lower, lowered_ports
from visionllm_edge.export.passes.quantize_dequantize import Quantization
from visionllm_edge.export.stage_precisions import stage_precisions
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.engines.profiles import axis_ranges, cache_rows, profiles_for
from visionllm_edge.runtime.manifest import StageSpec, Variant
from visionllm_edge.runtime.ports import StagePorts
from visionllm_edge.runtime.targets import QUANTIZED, Target

__all__ = ["Choices", "GraphPlan", "explain_bundle", "form_counts"]


@dataclass(frozen=True)
class Choices:
    """What the user asks for beside the target.

    Attributes:
        precision: of all stages; the target's default if None.
        stage_precision: stage -> precision, where it differs.
        plugins: whether our TensorRT plugins may be used.
        context: rows of the cache; the model's context if None.
        check: run every graph that can run here on the golden inputs.
        calibration: folder of pictures for int8 and fp8; made ones if None.
    """

    precision: str | None = None
    stage_precision: Mapping[str, str] = field(default_factory=dict)
    plugins: bool = True
    context: int | None = None
    check: bool = False
    calibration: Path | None = None


@dataclass(frozen=True)
class GraphPlan:
    """What one graph of a stage would be built from.

    Attributes:
        stage: its name.
        bucket: (height, width) of a stage that has several graphs.
        precision: of the graph.
        opset: of the default domain.
        nodes: how many.
        kept: rule -> nodes that it leaves in fp32, for half precision.
        forms: what every semantic node became.
        inputs: name -> type and shape, as text.
        outputs: the same.
        profiles: use -> input -> smallest, best and largest shape; for engines.
        checks: what was checked and how it came out, as text.
        quantization: what is in int8 or fp8, where that was asked for.
    """

    stage: str
    bucket: tuple[int, int] | None
    precision: str
    opset: int
    nodes: int
    kept: Mapping[str, int]
    forms: tuple[LoweredNode, ...]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    profiles: Mapping[str, Mapping[str, tuple[tuple[int, ...], ...]]]
    checks: tuple[str, ...]
    quantization: Quantization | None = None

    @property
    def name(self) -> str:
        """As in messages: the stage, with its bucket."""
        return self.stage + ("" if self.bucket is None else f".{self.bucket[0]}x{self.bucket[1]}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "stage": self.stage,
            "bucket": self.bucket,
            "precision": self.precision,
            "opset": self.opset,
            "nodes": self.nodes,
            "kept_in_fp32": dict(self.kept),
            "forms": [form.to_dict() for form in self.forms],
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            "profiles": self.profiles,
            "checks": list(self.checks),
            "quantization": self.quantization.to_dict() if self.quantization else None,
        }


def explain_bundle(bundle: Bundle, target: Target, choices: Choices) -> list[GraphPlan]:
    """Lower every graph of a bundle in memory and describe it.

    Raises:
        ConfigError: the target does not compute in a precision, or an unknown stage was named.
        BundleError: no canonical graphs.
        ExportError: a graph cannot be lowered.
        ParityError: with `check`, a lowered graph gives wrong numbers.
    """
    stages = bundle.manifest.stages
    ends = {name: spec.ports(name) for name, spec in stages.items()}
    precisions = stage_precisions(ends, target, choices.precision, choices.stage_precision)
    calibrator = Calibrator(bundle, choices.calibration)
    return [
        _explain(bundle, name, spec, variant, target, precisions[name], choices, calibrator)
        for name, spec in stages.items()
        for variant in spec.variants
    ]


def _explain(
    bundle: Bundle,
    stage: str,
    spec: StageSpec,
    variant: Variant,
    target: Target,
    precision: str,
    choices: Choices,
    calibrator: Calibrator,
) -> GraphPlan:
    quantization = None
    if precision in QUANTIZED and target.backend != "onnxruntime":
        quantization = calibrator.calibrate(stage, variant.bucket, precision)
    model = load_canonical(bundle, stage, variant.bucket)
    ranges = axis_ranges(bundle.manifest.model, capacity=choices.context)
    forms = lower(
        model,
        target,
        precision=precision,
        plugins=choices.plugins,
        quantization=quantization,
        capacity=cache_rows(ranges),
    )
    ports = lowered_ports(spec.ports(stage), target, precision)
    shapes = {value.name or "": _shape(value) for value in model.graph.inputs}
    profiles = {}
    if target.backend != "onnxruntime":
        profiles = {
            profile.use: {
                name: (shape.min, shape.opt, shape.max) for name, shape in profile.shapes.items()
            }
            for profile in profiles_for(stage, shapes, ranges)
        }
    opset, nodes = model.graph.opset_imports[""], len(model.graph)
    kept = dict(model.meta.get(KEPT, {}))
    checks = _checks(bundle, stage, variant, model, forms, target, precision, choices)
    return GraphPlan(
        stage=stage,
        bucket=variant.bucket,
        precision=precision,
        opset=opset,
        nodes=nodes,
        kept=kept,
        forms=tuple(forms),
        inputs=_ends(ports, "inputs", shapes),
        outputs=_ends(ports, "outputs", {v.name or "": _shape(v) for v in model.graph.outputs}),
        profiles=profiles,
        checks=checks,
        quantization=quantization,
    )


def _checks(
    bundle: Bundle,
    stage: str,
    variant: Variant,
    model: ir.Model,
    forms: list[LoweredNode],
    target: Target,
    precision: str,
    choices: Choices,
) -> tuple[str, ...]:
    checks = []
    if target.backend != "onnxruntime":
        checks.append(f"operators, opset and GridSample: taken by {target.release.label}")
    if not choices.check:
        return tuple(checks)
    golden = Golden(bundle, stage)
    bodies = {function.name for function in model.functions.values()}
    stripped = {form.op for form in forms if form.form == "plugin"} - bodies
    if golden.bucket != variant.bucket:
        checks.append("numbers: not compared, the golden run is of another bucket")
    elif stripped:
        checks.append("numbers: cannot run here, the plugin's function is stripped")
    else:
        report = check_lowered(model, golden, precision=precision)
        worst = max(report, key=lambda tensor: tensor.error / max(tensor.limit, 1e-300))
        checks.append(
            f"numbers in ONNX Runtime: right, worst {worst.name} {worst.error:.2g} "
            f"(limit {worst.limit:.2g})"
        )
    return tuple(checks)


def _shape(value: ir.Value) -> list[int | str]:
    assert value.shape is not None, "the ends of a graph have shapes"
    return [axis if isinstance(axis, int) else str(axis.value) for axis in value.shape]


def _ends(ports: StagePorts, side: str, shapes: Mapping[str, list[int | str]]) -> dict[str, str]:
    found = ports.inputs if side == "inputs" else ports.outputs
    return {port.name: f"{port.dtype} [{', '.join(map(str, shapes[port.name]))}]" for port in found}


def form_counts(plan: GraphPlan) -> list[str]:
    """One line per operator, form and reason."""
    counts = Counter((form.op, form.form, form.reason) for form in plan.forms)
    return [f"{count} {op} as {form}: {why}" for (op, form, why), count in counts.items()]
