"""One stage from torch to a folder: graph, lower, save, check, compare with the model.

The folder gets the stage's graphs (one per bucket, each lowered and canonical), their one weights
file, a small golden file with inputs and true outputs, and `stage.json` with ports, lowering and
parity reports. A stage that fails a check raises; whoever gave the folder then throws it away.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.golden import golden_limits
from visionllm_edge.export.lowering import lower
from visionllm_edge.export.parity import (
    CONTROL_FACTOR,
    FLOORS,
    ROUNDED_FACTOR,
    TensorParity,
    compare_outputs,
    limits_key,
    require_parity,
)
from visionllm_edge.export.passes.share_weights import WeightFile
from visionllm_edge.export.quantized_control import run_quantized_control
from visionllm_edge.export.stages import Bucket, Stage, fixed_ports
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.runtime.backends import StageOptions, StageRunner, load_backend
from visionllm_edge.runtime.errors import ExportError
from visionllm_edge.runtime.ports import Array, StagePorts
from visionllm_edge.runtime.targets import QUANTIZED, find_target

__all__ = [
    "STAGE_FILE",
    "CaseParity",
    "ModelPair",
    "build_stage",
    "canonical_graph",
    "check_stage",
    "parity_summary",
    "run_torch",
    "save_graph",
    "variant_ports",
]

STAGE_FILE = "stage.json"

Note = Callable[[str], None]


class ModelPair:
    """The model in float32 and, made when first needed, in float64 (the truth of the gate)."""

    def __init__(self, model: VisionLLM) -> None:
        """Take the float32 model."""
        self.model = model
        self.examples = Examples(model)

    @property
    def whole(self) -> bool:
        """Whether all of the model is in memory at once."""
        return True

    @cached_property
    def truth(self) -> VisionLLM:
        """The same weights in float64."""
        return copy.deepcopy(self.model).double()

    def module(self, stage: Stage, bucket: Bucket | None) -> nn.Module:
        """The component of a stage in float32, its weights in memory."""
        return stage.module(self.model, bucket)

    def run_true(
        self, stage: Stage, bucket: Bucket | None, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Outputs of a stage's component in float64."""
        return run_torch(stage.module(self.truth, bucket), inputs)

    def release(self) -> None:
        """Nothing of the model is needed for a while; a streamed one is forgotten."""


@dataclass(frozen=True)
class CaseParity:
    """How one run of one variant compares."""

    bucket: Bucket | None
    case: Case
    outputs: list[TensorParity]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "bucket": self.bucket,
            "case": asdict(self.case),
            "outputs": [tensor.to_dict() for tensor in self.outputs],
        }


def build_stage(
    pair: ModelPair,
    stage: Stage,
    folder: Path,
    *,
    target: str,
    precision: str | None = None,
    note: Note = lambda text: None,
) -> None:
    """Fill a folder with a stage; see the module.

    Args:
        pair: the model.
        stage: an entry of the stage table.
        folder: empty.
        target: name of the target.
        precision: of the lowered graphs; the target's default if not given.
        note: gets a line per variant.

    Raises:
        ExportError: a graph that cannot be traced, lowered or run.
        ParityError: a graph that computes something else than the model.
    """
    config, row = pair.model.config, find_target(target)
    precision = row.resolve_precision(precision)
    buckets = stage.bucket_list(config)
    (folder / "stages").mkdir()
    (folder / "golden").mkdir()
    variants, lowering, parities = [], {}, []
    golden_bucket = min(buckets, key=lambda b: b[0] * b[1] if b else 0)
    golden: dict[str, Any] = {}
    with WeightFile(folder / "stages" / f"{stage.name}.weights") as weights:
        for bucket in buckets:
            started = time.monotonic()
            relative = f"stages/{stage.name}{_suffix(bucket)}.onnx"
            canonical = f"stages/{stage.name}{_suffix(bucket)}.canonical.onnx"
            model = canonical_graph(pair, stage, bucket)
            traced = time.monotonic()
            save_graph(stage.name, model, folder / canonical, weights)
            forms = lower(model, row, precision=precision)
            lowering[relative] = [node.to_dict() for node in forms]
            save_graph(stage.name, model, folder / relative, weights)
            variants.append({"bucket": bucket, "model": relative, "canonical": canonical})
            del model  # what was traced refers to weights
            checked = check_stage(
                pair, stage, bucket, folder / relative, folder / canonical, target, precision
            )
            parities += checked.reports
            if bucket == golden_bucket:
                golden = _write_golden(folder, stage.name, bucket, checked)
                golden["limits"] = golden_limits(
                    pair.module(stage, bucket),
                    stage,
                    variant_ports(pair, stage, bucket),
                    stage.trace_case,
                    checked.inputs,
                    checked.truth,
                    checked.control,
                    folder / canonical,
                    done=pair.release,
                )
                if precision != row.precision:
                    key = limits_key(precision, target)
                    golden["limits"][key] = {t.name: t.limit for t in checked.reports[0].outputs}
            finished = time.monotonic()
            note(
                f"{stage.name}{_suffix(bucket)}: trace {traced - started:.1f} s, lower, check and "
                f"compare {finished - traced:.1f} s"
            )
    ports = stage.ports(config)
    content = {
        "inputs": [port.to_dict() for port in ports.inputs],
        "outputs": [port.to_dict() for port in ports.outputs],
        "variants": variants,
        "lowering": lowering,
        "parity": parity_summary(parities, precision) | {"golden": golden},
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    (folder / STAGE_FILE).write_text(text, encoding="utf-8")


def variant_ports(pair: ModelPair, stage: Stage, bucket: Bucket | None) -> StagePorts:
    """The ports of one variant, its bucket's sizes as numbers."""
    config = pair.model.config
    sizes = stage.bucket_sizes(config, bucket) if bucket is not None else {}
    return fixed_ports(stage.ports(config), sizes)


@dataclass(frozen=True)
class CheckedVariant:
    """A variant that passed the gate.

    Attributes:
        reports: one per run, the trace sizes first.
        inputs: of the run at the trace sizes.
        truth: its true outputs.
        control: what torch makes of it in float32.
    """

    reports: list[CaseParity]
    inputs: dict[str, Tensor]
    truth: dict[str, Array]
    control: dict[str, Array]


@dataclass(frozen=True)
class _Expected:
    """What a run should give."""

    case: Case
    inputs: dict[str, Tensor]
    truth: dict[str, Array]
    control: dict[str, Array]


def check_stage(
    pair: ModelPair,
    stage: Stage,
    bucket: Bucket | None,
    path: Path,
    canonical: Path | None,
    target: str,
    precision: str | None = None,
) -> CheckedVariant:
    """Run a variant at the trace sizes and at the other sizes, and compare every output.

    Args:
        pair: the model.
        stage: an entry of the stage table.
        bucket: of the variant.
        path: its lowered graph.
        canonical: the graph that it was lowered from, which the control of int8 runs; None if the
            precision needs no such control.
        target: name of the target.
        precision: of the lowered graph; the target's default if not given.

    Raises:
        ExportError: the graph does not run at one of the sizes.
        ParityError: an output is wrong.
    """
    ports = variant_ports(pair, stage, bucket)
    row = find_target(target)
    precision = row.resolve_precision(precision)
    expected = [
        _expected(pair, stage, bucket, case, ports)
        for case in (stage.trace_case, *stage.check_cases)
    ]
    pair.release()  # a large component and a session of it need not be in memory together
    backend = load_backend(row.backend)
    runner = backend.load_stage(path, ports, StageOptions(threads=torch.get_num_threads()))
    reports: list[CaseParity] = []
    for run in expected:
        ours = _run(stage.name, runner, run.inputs, run.case)
        control, factor = run.control, CONTROL_FACTOR
        if precision in QUANTIZED and canonical is not None:
            factor = ROUNDED_FACTOR
            arrays = {name: tensor.numpy() for name, tensor in run.inputs.items()}
            rounded = run_quantized_control(ir.load(canonical), arrays, precision, by_row=True)
            control = stage.compared(rounded, run.case)
        outputs = compare_outputs(
            stage.compared(ours, run.case), run.truth, control, precision=precision, factor=factor
        )
        require_parity(f"{stage.name}{_suffix(bucket)}", outputs)
        reports.append(CaseParity(bucket, run.case, outputs))
    first = expected[0]
    return CheckedVariant(reports, first.inputs, first.truth, first.control)


def _expected(
    pair: ModelPair, stage: Stage, bucket: Bucket | None, case: Case, ports: StagePorts
) -> _Expected:
    """Inputs of a run, its true outputs and what torch makes of them in float32."""
    inputs = stage.inputs(pair.examples, bucket, case)
    wide = pair.run_true(stage, bucket, {name: _widened(x) for name, x in inputs.items()})
    control = run_torch(pair.module(stage, bucket), inputs)
    true, narrow = (
        stage.compared(
            {port.name: x.numpy() for port, x in zip(ports.outputs, outputs, strict=True)}, case
        )
        for outputs in (wide, control)
    )
    return _Expected(case, inputs, true, narrow)


def canonical_graph(pair: ModelPair, stage: Stage, bucket: Bucket | None) -> ir.Model:
    """The canonical graph of one variant; see `Stage.canonical`."""
    pair.module(stage, bucket)  # its weights are in memory before it is traced
    return stage.canonical(
        pair.examples,
        bucket,
        name=f"{stage.name}{_suffix(bucket)}",
        ports=variant_ports(pair, stage, bucket),
    )


def save_graph(stage: str, model: ir.Model, path: Path, weights: WeightFile) -> None:
    """Write a graph, its large weights into the file of the stage, and check that it is valid.

    Raises:
        ExportError: it is no valid ONNX model.
    """
    weights.take(model)
    ir.save(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise ExportError(
            f"stage '{stage}': {path.name} is no valid ONNX model: {str(e).splitlines()[0]}"
        ) from e


def _run(
    stage: str, runner: StageRunner, inputs: Mapping[str, Tensor], case: Case
) -> dict[str, Array]:
    try:
        outputs = runner.run({name: tensor.numpy() for name, tensor in inputs.items()})
    except Exception as e:
        raise ExportError(f"stage '{stage}': does not run at {case}: {e}") from e
    # The runner owns its output buffers and the next run overwrites them.
    return {name: np.array(array) for name, array in outputs.items()}


def run_torch(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Outputs of a component, one or several, without gradients."""
    with torch.no_grad():
        outputs = module(*inputs.values())
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _write_golden(
    folder: Path, stage: str, bucket: Bucket | None, checked: CheckedVariant
) -> dict[str, Any]:
    """Store inputs and true outputs (rounded to float32) of one run; returns the manifest's entry.

    Rounding the truth costs half a unit in the last place, far below the floor of the limits.
    """
    relative = f"golden/{stage}.npz"
    named = {f"in.{name}": tensor.numpy() for name, tensor in checked.inputs.items()}
    named |= {f"out.{name}": array.astype(np.float32) for name, array in checked.truth.items()}
    np.savez_compressed(folder / relative, **named)  # type: ignore[arg-type]
    return {
        "file": relative,
        "bucket": bucket,
        "case": asdict(checked.reports[0].case),
    }


def parity_summary(parities: list[CaseParity], precision: str) -> dict[str, Any]:
    """What the manifest says about the runs of a stage in a precision."""
    worst = max(
        (tensor for report in parities for tensor in report.outputs),
        key=lambda tensor: tensor.error / max(tensor.limit, 1e-300),
    )
    rounded = precision in QUANTIZED
    control = "canonical graph, rounded by row" if rounded else "torch float32"
    factor = ROUNDED_FACTOR if rounded else CONTROL_FACTOR
    return {
        "precision": precision,
        "rule": f"error <= {factor:g} x control + {FLOORS[precision]:g} x scale",
        "truth": "torch float64",
        "control": control,
        "worst": worst.to_dict(),
        "runs": [report.to_dict() for report in parities],
    }


def _suffix(bucket: Bucket | None) -> str:
    return "" if bucket is None else f".{bucket[0]}x{bucket[1]}"
