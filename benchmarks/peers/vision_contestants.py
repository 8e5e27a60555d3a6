"""Ways to run one vision stage; each is there if what it needs is installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.benchmarks.peers.vision_stage import PreparedStage
from visionllm_edge.runtime.backends import StageOptions, load_backend

__all__ = ["CONTESTANTS", "TOLERANCE", "Runner"]

Outputs = Mapping[str, NDArray[np.generic]]
Runner = Callable[[], Outputs]

TOLERANCE = {"fp32": 2e-3, "bf16": 0.1, "int8": 0.1}
"""Of `difference`: the error that all but a thousandth of the numbers stay below."""


def _ours(stage: PreparedStage, threads: int, *, graph: Path) -> Runner:
    runner = load_backend("onnxruntime").load_stage(
        graph, stage.ports, StageOptions(threads=threads)
    )
    inputs = stage.arrays()
    return lambda: runner.run(inputs)


def _plain(stage: PreparedStage, threads: int) -> Runner:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(stage.plain), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    inputs = stage.arrays()
    return lambda: dict(zip(names, session.run(None, inputs), strict=True))


def _torch(stage: PreparedStage, threads: int, *, bf16: bool, compiled: bool) -> Runner:
    import torch

    torch.set_num_threads(threads)
    module: Any = stage.module
    if compiled:
        torch._dynamo.reset()
        module = torch.compile(stage.module)
    names = [port.name for port in stage.ports.outputs]

    def run() -> Outputs:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = module(*stage.inputs.values())
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        return {name: tensor.float().numpy() for name, tensor in zip(names, outputs, strict=True)}

    return run


def _openvino(stage: PreparedStage, threads: int, *, precision: str) -> Runner:
    import openvino

    core = openvino.Core()
    model = core.read_model(stage.plain)
    shapes = {name: list(array.shape) for name, array in stage.arrays().items()}
    model.reshape(shapes)
    if precision == "int8":
        import nncf

        data = nncf.Dataset([stage.arrays()])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = nncf.quantize(model, data, subset_size=1, model_type=nncf.ModelType.TRANSFORMER)
    hints = {
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "bf16" if precision != "fp32" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    inputs = stage.arrays()
    names = [port.name for port in stage.ports.outputs]

    def run() -> Outputs:
        done = request.infer(inputs)
        return {name: done[index] for index, name in enumerate(names)}

    return run


CONTESTANTS: dict[str, tuple[str, Callable[[PreparedStage, int], Runner]]] = {
    "ours": ("fp32", lambda s, t: _ours(s, t, graph=s.lowered)),
    "ours int8": ("int8", lambda s, t: _ours(s, t, graph=s.int8)),
    "ONNX Runtime, plain graph": ("fp32", _plain),
    "torch": ("fp32", lambda s, t: _torch(s, t, bf16=False, compiled=False)),
    "torch bf16": ("bf16", lambda s, t: _torch(s, t, bf16=True, compiled=False)),
    "torch compiled": ("fp32", lambda s, t: _torch(s, t, bf16=False, compiled=True)),
    "torch compiled bf16": ("bf16", lambda s, t: _torch(s, t, bf16=True, compiled=True)),
    "OpenVINO": ("fp32", lambda s, t: _openvino(s, t, precision="fp32")),
    "OpenVINO bf16": ("bf16", lambda s, t: _openvino(s, t, precision="bf16")),
    "OpenVINO int8": ("int8", lambda s, t: _openvino(s, t, precision="int8")),
}
"""Name to precision and maker; a maker raises ImportError where something is missing."""
