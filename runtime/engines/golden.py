"""Run an engine on the golden inputs of its stage and compare with the true outputs.

``python -m visionllm_edge.runtime.engines.golden IN OUT`` reads a `CheckRequest` and writes a
`CheckAnswer`.

The limits come from the compile: plain PyTorch's own error in the same precision, doubled, plus a
floor. A device needs no checkpoint and no exporter to check what it has built.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from visionllm_edge.runtime.backends import StageOptions, load_backend
from visionllm_edge.runtime.backends.base import PAST_PREFIX, PRESENT_PREFIX
from visionllm_edge.runtime.engines.plan import StagePlan
from visionllm_edge.runtime.engines.plugin_loading import load_plugins
from visionllm_edge.runtime.engines.record import GoldenResult
from visionllm_edge.runtime.engines.request import (
    CheckAnswer,
    CheckRequest,
    read_json,
    write_json,
)
from visionllm_edge.runtime.engines.tensorrt_module import load
from visionllm_edge.runtime.errors import EdgeError, ParityError
from visionllm_edge.runtime.ports import Array, StagePorts

__all__ = ["cache_capacity", "check_engine", "compare", "fitted_inputs", "main", "read_golden"]


def main(arguments: list[str]) -> int:
    """Check; every error of ours becomes an answer, anything else the process' own death."""
    request = read_json(CheckRequest, Path(arguments[0]))
    try:
        trt = load(request.build.backend)
        keep = load_plugins(trt, request.build)
        answer = CheckAnswer(result=check_engine(request))
        del keep
    except EdgeError as error:
        answer = CheckAnswer(error=str(error), kind=type(error).__name__)
    write_json(Path(arguments[1]), answer)
    return 0


def check_engine(request: CheckRequest) -> GoldenResult:
    """Load an engine, run it once and compare every output.

    Raises:
        BackendError: the engine cannot be loaded or run.
        ParityError: an output is wrong; the message names the stage and the first bad output.
    """
    plan = request.build.plan
    assert plan.golden is not None, "only stages with golden files are checked"
    ports = StagePorts(plan.stage, request.inputs, request.outputs)
    inputs, expected = read_golden(Path(request.golden))
    runner = load_backend(request.build.backend).load_stage(
        Path(request.build.engine), ports, StageOptions(sha256=request.engine_sha256)
    )
    outputs = runner.run(fitted_inputs(ports, inputs, capacity=cache_capacity(plan)))
    return compare(plan.name, outputs, expected, plan.golden.limits)


def read_golden(path: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs and true outputs by port name."""
    with np.load(path, allow_pickle=False) as stored:
        named = {name: stored[name] for name in stored.files}
    return (
        {name[3:]: array for name, array in named.items() if name.startswith("in.")},
        {name[4:]: array for name, array in named.items() if name.startswith("out.")},
    )


def fitted_inputs(
    ports: StagePorts, inputs: Mapping[str, Array], *, capacity: int | None
) -> dict[str, Array]:
    """Golden inputs as this engine takes them: its element types, its capacity of the cache.

    Rows behind the valid ones do not count, so a shorter cache is filled up with zeros; with
    `capacity` None it keeps its length.
    """
    dtypes = {port.name: port.dtype for port in ports.inputs}
    out = {}
    for name, array in inputs.items():
        fitted = array.astype(dtypes.get(name, array.dtype.name), copy=False)
        if name.startswith(PAST_PREFIX) and capacity is not None:
            padded = np.zeros((*fitted.shape[:2], capacity, *fitted.shape[3:]), fitted.dtype)
            padded[:, :, : fitted.shape[2]] = fitted
            fitted = padded
        out[name] = fitted
    return out


def cache_capacity(plan: StagePlan) -> int | None:
    """Rows of the cache that a stage's profiles fix; None for a stage without a cache."""
    rows = {
        shape.max[2]
        for profile in plan.profiles
        for name, shape in profile.shapes.items()
        if name.startswith(PAST_PREFIX)
    }
    return max(rows, default=None)


def compare(
    name: str,
    outputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    limits: Mapping[str, float],
) -> GoldenResult:
    """Largest absolute error of every output against its limit.

    Raises:
        ParityError: an output is missing, has another shape, is not finite, or is off by more than
            its limit.
    """
    errors: dict[str, float] = {}
    for output, true in expected.items():
        if output not in outputs or output not in limits:
            raise ParityError(
                f"stage '{name}': output '{output}' expected, the engine or its limits lack it. "
                "Make the kit again."
            )
        got = np.asarray(outputs[output])
        if output.startswith(PRESENT_PREFIX):
            got = got[:, :, : true.shape[2]]  # rows of the cache that have a defined value
        if got.shape != true.shape or not np.isfinite(got.astype(np.float64)).all():
            raise ParityError(
                f"stage '{name}': output '{output}' expected finite numbers of shape "
                f"{list(true.shape)}, got {list(got.shape)}. Nothing was sealed."
            )
        difference = np.abs(got.astype(np.float64) - true.astype(np.float64))
        errors[output] = float(difference.max(initial=0.0))
    worst = max(errors, key=lambda output: errors[output] / max(limits[output], 1e-300))
    share = errors[worst] / max(limits[worst], 1e-300)
    if share > 1:
        raise ParityError(
            f"stage '{name}': output '{worst}' is wrong: largest error {errors[worst]:.3g}, "
            f"allowed {limits[worst]:.3g}. Nothing was sealed. `visionllm-edge verify --layerwise` "
            "finds the first layer that differs."
        )
    return GoldenResult("passed", worst=worst, share=round(share, 4), errors=errors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
