"""Decide how a stage is written in eight bits: ranges from pictures, layers by measurement.

1. The layers that structure leaves out (`quantized_keep_list`) are never looked at.
2. The canonical graph runs on the calibration pictures; every activation of a remaining layer is
   sampled, and the range is chosen by the method whose quantised stage has the smallest error.
3. Each activation is quantised alone. One that takes more than `SENSITIVE_SHARE` of what the gate
   allows stays in fp16 with its layers.
4. While all together take more than `TOTAL_SHARE`, the most sensitive of the rest stays too.

The golden run is one of the runs: its words are made of random tokens, unlike those of any picture,
and what is clipped there the gate would refuse. What the gate then judges is the graph that is
built (its scales, its stored weights, its half precision), not the choice of ranges; that one is
judged by the task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from visionllm_edge.export.calibration_inputs import StageInputs, load_pictures
from visionllm_edge.export.canonical import load_canonical
from visionllm_edge.export.check_lowered import Golden
from visionllm_edge.export.graph_session import GraphSession
from visionllm_edge.export.passes.quantize_dequantize import Quantization, activation_of
from visionllm_edge.export.passes.quantized_keep_list import quantizable_layers
from visionllm_edge.export.ranges import METHODS, Samples
from visionllm_edge.export.sensitivity import Probe
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.ports import Array

__all__ = ["SENSITIVE_SHARE", "TOTAL_SHARE", "Calibrator", "calibrate_graph"]

SENSITIVE_SHARE = 0.5
"""Of the limit, for one activation alone: errors of many add up like a random walk, so one that
takes half of it is as large as all others together may be."""

TOTAL_SHARE = 0.8
"""Of the limit, for all together: fp16 and pictures that were not seen take their part."""

_PROBED_RUNS = 4
"""That methods are compared on. Limits belong to the golden run, which comes first where the graph
has one: it alone is compared with them."""

Bucket = tuple[int, int]
Note = Callable[[str], None]


@dataclass(frozen=True)
class _Measured:
    """What a probe found."""

    method: str
    errors: Mapping[str, float]
    alone: Mapping[str, float]
    total: float


class Calibrator:
    """Calibrates stages of one bundle on one set of pictures.

    Args:
        bundle: compiled for the CPU.
        folder: of pictures; scenes of the shapes world if None.
        note: gets a line per graph.
    """

    def __init__(
        self, bundle: Bundle, folder: Path | None = None, note: Note = lambda text: None
    ) -> None:
        """Look at the folder; nothing runs yet."""
        self._bundle, self._note = bundle, note
        self.pictures = load_pictures(folder)
        self._inputs = StageInputs(bundle, self.pictures)

    def calibrate(self, stage: str, bucket: Bucket | None, precision: str) -> Quantization:
        """How to quantise one graph.

        Raises:
            BundleError: no canonical graph, or no limits for that precision.
            EdgeError: a picture cannot be read, or the graph does not run here.
        """
        golden = Golden(self._bundle, stage)
        limits = golden.limits.get(precision)
        if limits is None:
            raise BundleError(
                f"bundle '{self._bundle.root.name}': stage '{stage}' has no limits for "
                f"{precision}. Compile it again with this version of visionllm-edge."
            )
        runs = self._inputs.runs(stage, bucket)
        if golden.bucket == bucket:
            runs = [golden.inputs, *runs]
        plan = calibrate_graph(
            lambda: load_canonical(self._bundle, stage, bucket),
            runs,
            limits,
            precision,
            origin=self.pictures.origin,
        )
        name = stage if bucket is None else f"{stage}.{bucket[0]}x{bucket[1]}"
        kept = ", ".join(f"{rule} {n}" for rule, n in Counter(plan.kept.values()).items())
        self._note(
            f"{name}: {len(plan.layers)} layers in {precision}, ranges by {plan.method} on "
            f"{len(runs)} runs of {self.pictures.origin}; kept in fp16: {kept or 'none'}"
        )
        return plan


def calibrate_graph(
    load: Callable[[], ir.Model],
    runs: list[dict[str, Array]],
    limits: Mapping[str, float],
    precision: str,
    *,
    origin: str = "",
) -> Quantization:
    """Calibrate one graph.

    Args:
        load: gives the canonical graph, a new one at each call.
        runs: inputs from pictures; the first one also ranks the layers.
        limits: output -> largest error that the gate allows.
        precision: `int8` or `fp8`.
        origin: of the pictures, for the report.
    """
    layers, by_rule = quantizable_layers(load())
    kept = {node.name or "": rule for node, rule in by_rule.items()}
    activations = {node.name or "": activation_of(node).name or "" for node in layers}
    samples = _sample(load(), sorted(set(activations.values())), runs)
    ranges = {
        method: {name: s.range(method, precision) for name, s in samples.items()}
        for method in METHODS
    }
    if not activations:
        return Quantization(precision, (), {}, kept, report={"pictures": origin})
    plan = Quantization(precision, tuple(activations), ranges["max"])
    with Probe(load(), plan, runs[:_PROBED_RUNS]) as probe:
        measured, dropped = _choose(probe, ranges, limits)
    kept |= {name: "sensitive" for name, source in activations.items() if source in dropped}
    chosen = tuple(name for name in activations if name not in kept)
    used = {activations[name] for name in chosen}
    return Quantization(
        precision=precision,
        layers=chosen,
        ranges={name: ranges[measured.method][name] for name in sorted(used)},
        kept=kept,
        method=measured.method,
        report={
            "pictures": origin,
            "runs": len(runs),
            "relative_error": dict(measured.errors),
            "share_of_limit_alone": dict(measured.alone),
            "share_of_limit": measured.total,
        },
    )


def _sample(
    model: ir.Model, activations: list[str], runs: list[dict[str, Array]]
) -> dict[str, Samples]:
    """Run the graph with these activations as further outputs."""
    samples = {name: Samples() for name in activations}
    given = {value.name for value in model.graph.inputs}
    inner = {v.name: v for node in model.graph for v in node.outputs}
    ends = {value.name for value in model.graph.outputs}
    model.graph.outputs.extend(
        inner[name] for name in activations if name not in given and name not in ends
    )
    with GraphSession(model) as session:
        for run in runs:
            arrays = {**run, **session.run(run)}
            for name, seen in samples.items():
                seen.add(arrays[name])
    return samples


def _choose(
    probe: Probe, ranges: Mapping[str, Mapping[str, float]], limits: Mapping[str, float]
) -> tuple[_Measured, set[str]]:
    """The method with the smallest error, and the activations that stay as they are."""
    everything = list(probe.groups)
    errors = {}
    for method in METHODS:
        probe.ranges.update(ranges[method])
        errors[method] = probe.error(everything)
    method = min(METHODS, key=lambda name: errors[name])
    probe.ranges.update(ranges[method])
    alone = {name: probe.share([name], limits) for name in everything}
    dropped = {name for name, share in alone.items() if share > SENSITIVE_SHARE}
    rest = sorted((n for n in everything if n not in dropped), key=lambda n: alone[n])
    total = probe.share(rest, limits)
    while rest and total > TOTAL_SHARE:
        # A tenth at a time: a stage with a hundred layers is measured ten times, not a hundred.
        for _ in range(max(1, len(rest) // 10)):
            dropped.add(rest.pop())
        total = probe.share(rest, limits)
    return _Measured(method, errors, alone, total), dropped
