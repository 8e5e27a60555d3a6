"""Bisect an engine against ONNX Runtime, layer by layer, with Polygraphy.

The graph of a kit runs twice on the same golden inputs with every intermediate tensor as an output:
in ONNX Runtime (any machine), and in a freshly built TensorRT engine (needs the GPU). The first
tensor, in graph order, that differs by more than a layer may, is where to look.

Marking all tensors keeps the builder from fusing, so a difference that only a fused engine shows is
not found this way; the report says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from visionllm_edge.runtime.engines.golden import cache_capacity, fitted_inputs, read_golden
from visionllm_edge.runtime.engines.gpu import NoGpu, find_gpu
from visionllm_edge.runtime.engines.kit_folder import BUILD_FOLDER, Kit
from visionllm_edge.runtime.engines.plan import StagePlan
from visionllm_edge.runtime.errors import BackendError, ConfigError
from visionllm_edge.runtime.ports import Array, Port, StagePorts

__all__ = ["LAYER_TOLERANCE", "Layerwise", "bisect", "command_lines", "first_difference"]

LAYER_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
"""Largest difference of a layer, relative to the largest magnitude of its tensor: about 20 units in
the last place of fp16 and bf16, and TF32-sized for fp32. For finding, not for passing: the gate's
limits are in `visionllm_edge.export.parity`."""

_SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"
_DTYPES = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.INT64: "int64"}


@dataclass(frozen=True)
class Layerwise:
    """What a bisection found.

    Attributes:
        stage: name and size.
        tensors: how many were looked at.
        not_finite: first tensor that overflows in ONNX Runtime already, else None.
        first: first tensor that differs on the device, else None.
        difference: of that tensor, relative to its scale.
        device: name of the GPU, or why the second half was not run.
        compared: whether there was a device to compare with.
        commands: Polygraphy command lines, to run by hand.
    """

    stage: str
    tensors: int
    not_finite: str | None
    first: str | None
    difference: float
    device: str
    compared: bool
    commands: tuple[str, ...]


def bisect(folder: Path, stage: str, *, plugin_library: Path | None = None) -> Layerwise:
    """Find the first layer that goes wrong.

    Args:
        folder: a kit; its build folder keeps inputs and outputs of the runs.
        stage: name of a stage or of one size of it; the one with golden inputs is taken.
        plugin_library: plugins for Polygraphy, which cannot load Python ones.

    Raises:
        ConfigError: no such stage, or it has no golden inputs.
        BackendError: Polygraphy is missing or a run failed.
    """
    kit = Kit.open(folder)
    plan = next((plan for plan in kit.plan.selected((stage,)) if plan.golden is not None), None)
    if plan is None or plan.golden is None:
        raise ConfigError(
            f"stage '{stage}' has no golden inputs in this size. Name the stage without a size."
        )
    kit.verify_stage(plan)
    kit.verify_file(plan.golden.file)
    graph = kit.file(plan.graph)
    inputs = fitted_inputs(
        _graph_ports(plan, graph),
        read_golden(kit.file(plan.golden.file))[0],
        capacity=cache_capacity(plan),
    )
    work = kit.root / BUILD_FOLDER / "layerwise" / plan.name
    work.mkdir(parents=True, exist_ok=True)
    _save_inputs(inputs, work / "inputs.json")
    reference, device = command_lines(plan, graph, work, kit.plan.target.backend, plugin_library)
    _run(plan, reference, {})
    order = [name for node in _model(graph).graph.node for name in node.output if name]
    truth = _load_outputs(work / "onnxruntime.json")
    bad = next((n for n in order if n in truth and not np.isfinite(_float(truth[n])).all()), None)
    gpu = find_gpu()
    first, difference = None, 0.0
    if not isinstance(gpu, NoGpu):
        switch = {_SWITCH: "1"} if kit.plan.target.backend == "tensorrt_rtx" else {}
        _run(plan, device, switch)
        first, difference = first_difference(
            _load_outputs(work / "device.json"), truth, order, LAYER_TOLERANCE[plan.precision]
        )
    return Layerwise(
        stage=plan.name,
        tensors=sum(name in truth for name in order),
        not_finite=bad,
        first=first,
        difference=difference,
        device=f"a GPU is needed, {gpu.reason}" if isinstance(gpu, NoGpu) else gpu.name,
        compared=not isinstance(gpu, NoGpu),
        commands=tuple(" ".join(["polygraphy", *line]) for line in (reference, device)),
    )


def command_lines(
    plan: StagePlan, graph: Path, work: Path, backend: str, plugin_library: Path | None = None
) -> tuple[list[str], list[str]]:
    """Polygraphy's arguments for ONNX Runtime and for the device."""
    common = ["--load-inputs", str(work / "inputs.json")]
    reference = ["run", str(graph), "--onnxrt", "--onnx-outputs", "mark", "all", *common]
    reference += ["--save-outputs", str(work / "onnxruntime.json")]
    device = ["run", str(graph), "--trt", "--trt-outputs", "mark", "all", *common]
    device += ["--save-outputs", str(work / "device.json")]
    if backend != "tensorrt_rtx":
        device.append("--strongly-typed")  # the only kind of network that TensorRT-RTX has
    for profile in plan.profiles:
        for bound in ("min", "opt", "max"):
            device.append(f"--trt-{bound}-shapes")
            for name, shapes in profile.shapes.items():
                sizes = ",".join(str(axis) for axis in getattr(shapes, bound))
                device.append(f"{name}:[{sizes}]")
    if plugin_library is not None:
        device += ["--plugins", str(plugin_library)]
    return reference, device


def first_difference(
    ours: Mapping[str, Array], truth: Mapping[str, Array], order: Sequence[str], tolerance: float
) -> tuple[str | None, float]:
    """The first tensor in graph order that differs by more than a share of its scale.

    Tensors that only one side has were fused away or renamed, and are passed over.
    """
    for name in order:
        if name not in ours or name not in truth:
            continue
        got, true = _float(ours[name]), _float(truth[name])
        if got.shape != true.shape or not np.isfinite(got).all():
            return name, float("inf")
        scale = float(np.abs(true).max(initial=0.0))
        difference = float(np.abs(got - true).max(initial=0.0)) / max(scale, 1e-30)
        if difference > tolerance:
            return name, difference
    return None, 0.0


def _float(array: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(array, dtype=np.float64)


def _model(graph: Path) -> onnx.ModelProto:
    return onnx.load(graph, load_external_data=False)


def _graph_ports(plan: StagePlan, graph: Path) -> StagePorts:
    """Element types as the graph has them."""
    ports = []
    for value in _model(graph).graph.input:
        kind = value.type.tensor_type
        shape = tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
        ports.append(Port(value.name, _DTYPES.get(kind.elem_type, "float32"), shape))
    return StagePorts(plan.stage, tuple(ports), ())


def _save_inputs(inputs: Mapping[str, Array], path: Path) -> None:
    try:
        from polygraphy.json import save_json
    except ImportError as e:
        raise BackendError(
            f"layerwise: Polygraphy cannot be imported ({e}). Install it: pip install polygraphy"
        ) from e
    save_json([dict(inputs)], str(path))


def _load_outputs(path: Path) -> dict[str, Array]:
    from polygraphy.comparator import RunResults
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.ERROR):  # it logs to stdout, where results go
        results = RunResults.load(str(path))
    _, iterations = results[0]
    return {name: np.asarray(array) for name, array in iterations[0].items()}


def _run(plan: StagePlan, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    code = "import sys; from polygraphy.tools import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = " | ".join((done.stdout + done.stderr).strip().splitlines()[-3:])
        raise BackendError(
            f"stage '{plan.name}': polygraphy {arguments[0]} exited with {done.returncode}: "
            f"{last}. A graph whose plugins have no function runs in TensorRT only: make the kit "
            "with --no-plugins to bisect it."
        )
