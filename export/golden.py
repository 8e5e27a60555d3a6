"""The limits that a bundle carries for every precision, so that a device needs no checkpoint.

A kit is lowered, built and verified far from torch: what the gate allows in fp16, bf16, int8 or
fp8 is measured here, once, on the golden inputs. The rule and its floors are in
`visionllm_edge.export.parity`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir
from torch import Tensor, nn

from visionllm_edge.export.calibration_inputs import CALIBRATED
from visionllm_edge.export.half_control import HALF_DTYPES, run_in_half
from visionllm_edge.export.parity import compare_outputs
from visionllm_edge.export.passes.quantize_dequantize import EIGHT_BITS
from visionllm_edge.export.quantized_control import run_quantized_control
from visionllm_edge.export.stages import Stage
from visionllm_edge.export.stages.examples import Case
from visionllm_edge.runtime.ports import Array, StagePorts

__all__ = ["golden_limits"]


def golden_limits(
    module: nn.Module,
    stage: Stage,
    ports: StagePorts,
    case: Case,
    inputs: Mapping[str, Tensor],
    truth: Mapping[str, Array],
    control: Mapping[str, Array],
    canonical: Path,
    *,
    done: Callable[[], None],
) -> dict[str, dict[str, float]]:
    """Largest error allowed per precision and output of one run.

    Args:
        module: the torch component in float32.
        stage: what it is a part of.
        ports: its ends.
        case: sizes of the run.
        inputs: of the run, in fp32 also where a device has a half-precision cache.
        truth: true outputs in float64.
        control: what the component makes of it.
        canonical: graph of the stage, which the eight-bit control runs.
        done: called when the component is not needed any more.

    Returns:
        Precision -> output -> limit.
    """
    exact = compare_outputs(control, truth, control, precision="fp32")
    limits = {"fp32": {tensor.name: tensor.limit for tensor in exact}}
    for precision in HALF_DTYPES:
        outputs = run_in_half(module, inputs, precision)
        halves = stage.compared(
            {p.name: t.numpy() for p, t in zip(ports.outputs, outputs, strict=True)}, case
        )
        report = compare_outputs(halves, truth, halves, precision=precision)
        limits[precision] = {tensor.name: tensor.limit for tensor in report}
    done()
    if stage.name not in CALIBRATED:
        return limits  # the language decoder's eight bits are of its weights only
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    for precision in EIGHT_BITS:
        outputs8 = run_quantized_control(ir.load(canonical), arrays, precision)
        bytes8 = stage.compared(outputs8, case)
        report = compare_outputs(bytes8, truth, bytes8, precision=precision)
        # What is not in eight bits is in fp16, so its rounding is allowed as well.
        limits[precision] = {
            tensor.name: max(tensor.limit, limits["fp16"][tensor.name]) for tensor in report
        }
    return limits
