"""The parity rule: how far a compiled stage may be from the model. All limits live here.

The rule is relative to a control. The truth is the torch component in float64. Plain PyTorch in the
precision of the target makes an error against it, and ours may be at most `CONTROL_FACTOR` times
that, plus a small floor relative to the largest value of the tensor (a control can be exact by
luck). For fp32 graphs on a CPU the control is torch in float32.

This module compares arrays; it does not run stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from visionllm_edge.runtime.errors import ParityError
from visionllm_edge.runtime.ports import Array
from visionllm_edge.runtime.targets import QUANTIZED, find_target

__all__ = [
    "CONTROL_FACTOR",
    "END_TO_END_BOX_PX",
    "END_TO_END_SCORE",
    "FLOORS",
    "MOST_CUT_OFF",
    "ROUNDED_FACTOR",
    "SPREAD_FACTOR",
    "TensorParity",
    "compare_outputs",
    "compare_with_limits",
    "limits_key",
    "require_parity",
]

CONTROL_FACTOR = 2.0

ROUNDED_FACTOR = 4.0
"""In place of it where activations are rounded to int8: that error is noise with rare large values,
and two right implementations draw it anew. With SmolLM2 one of 372 tensors reached 2.07 times its
control. The same graph without rounded activations must keep the ordinary factor."""

SPREAD_FACTOR = 1.2
"""On the control's root mean square error of what a cache of int8 holds. It was 0.91 to 1.01 times
the control's for every layer of SmolLM2, in fp32 and int4, and of the tiny checkpoint; scales that
are 3 % off make it 1.5 times as much."""

MOST_CUT_OFF = 0.1
"""Of the length of a layer's keys or values, what may lie beyond the ranges of a cache of int8.
Random tokens through SmolLM2, calibrated on text, reach 2 %; with half of the ranges 24 %, with a
quarter 56 %, with those of the next channel 47 %."""

FLOORS = {"fp32": 4e-6, "fp16": 1e-3, "bf16": 8e-3, "int8": 1e-3, "fp8": 1e-3}
"""Per precision, relative to the largest magnitude of the true tensor.

fp32: about 32 units in the last place, what a differently ordered sum over a few hundred terms
costs. fp16 and bf16: one unit in the last place (2**-10 and 2**-7), the rounding of the last two
tensors before the output. Sums are in fp32 on a GPU, in ONNX Runtime on a CPU and in the control,
so their order does not count here; which tensors are rounded between two sums differs by fusion,
and the factor on the control covers that. int8
and fp8: as fp16, which the rest of such a graph is in.
"""


END_TO_END_BOX_PX = 0.1
END_TO_END_SCORE = 1e-3
"""Whole chain against torch in float32, same picture and words. Stages are right to about 1e-6 of
their scale; four of them in a row stay far below these."""


@dataclass(frozen=True)
class TensorParity:
    """How one output compares.

    Attributes:
        name: of the output.
        error: largest absolute difference between ours and the truth; infinite where ours is not
            finite or has another shape.
        control: the same for plain PyTorch.
        limit: largest error allowed.
        scale: largest magnitude of the true tensor.
        detail: what is wrong beyond the number, else empty.
    """

    name: str
    error: float
    control: float
    limit: float
    scale: float
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the rule holds."""
        return self.error <= self.limit

    def to_dict(self) -> dict[str, float | str]:
        """Plain JSON types, as in the manifest."""
        return {
            "name": self.name,
            "error": self.error,
            "control": self.control,
            "limit": self.limit,
            "scale": self.scale,
        }


def compare_outputs(
    ours: Mapping[str, Array],
    truth: Mapping[str, Array],
    control: Mapping[str, Array],
    *,
    precision: str,
    factor: float = CONTROL_FACTOR,
) -> list[TensorParity]:
    """Compare every output by the control-relative rule.

    Args:
        ours: from the compiled stage.
        truth: from the torch component in float64.
        control: from the torch component in the target's precision.
        precision: a key of `FLOORS`.
        factor: on the control; `ROUNDED_FACTOR` where both round activations by row.

    Returns:
        One entry per output, in the order of `truth`.
    """
    report = []
    for name, true in truth.items():
        control_error = _largest_difference(control[name], true)[0]
        scale = float(np.abs(true).max(initial=0.0))
        limit = factor * control_error + FLOORS[precision] * scale
        error, detail = _largest_difference(ours[name], true)
        report.append(TensorParity(name, error, control_error, limit, scale, detail))
    return report


def compare_with_limits(
    ours: Mapping[str, Array], truth: Mapping[str, Array], limits: Mapping[str, float]
) -> list[TensorParity]:
    """Compare with limits that an earlier comparison recorded (golden files of a bundle)."""
    report = []
    for name, true in truth.items():
        error, detail = _largest_difference(ours[name], true)
        scale = float(np.abs(true).max(initial=0.0))
        report.append(TensorParity(name, error, 0.0, limits[name], scale, detail))
    return report


def limits_key(precision: str, target: str) -> str:
    """Under which name a golden file keeps the limits of a stage of a bundle.

    TensorRT's int8 has fixed ranges and limits that allow for it; a CPU rounds by row and has its
    own.
    """
    on_cpu = find_target(target).backend == "onnxruntime"
    return f"{precision}-by-row" if on_cpu and precision in QUANTIZED else precision


def require_parity(stage: str, report: list[TensorParity]) -> None:
    """Refuse a stage by its first bad tensor.

    Raises:
        ParityError: with the tensor's name, its error and the limit.
    """
    for tensor in report:
        if not tensor.ok:
            detail = f" ({tensor.detail})" if tensor.detail else ""
            raise ParityError(
                f"stage '{stage}': output '{tensor.name}' is wrong: largest error "
                f"{tensor.error:.3g}{detail}, allowed {tensor.limit:.3g} (plain PyTorch makes "
                f"{tensor.control:.3g}, values reach {tensor.scale:.3g}). Nothing was published."
            )


def _largest_difference(got: Array, true: Array) -> tuple[float, str]:
    if got.shape != true.shape:
        return float("inf"), f"shape {list(got.shape)}, expected {list(true.shape)}"
    if not np.isfinite(got).all():
        return float("inf"), f"{int((~np.isfinite(got)).sum())} values are not finite"
    difference = np.abs(got.astype(np.float64) - true.astype(np.float64))
    return float(difference.max(initial=0.0)), ""
