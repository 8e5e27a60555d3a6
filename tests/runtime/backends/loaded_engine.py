"""A stage on the fake device, for the tests of the TensorRT backend: an engine that adds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from tests.runtime.backends.fake_tensorrt import Engine, FakeDevice, FakeTensorRT
from visionllm_edge.runtime.backends import StageOptions
from visionllm_edge.runtime.backends.tensorrt import TensorRTBackend
from visionllm_edge.runtime.backends.tensorrt_stage import TensorRTStage
from visionllm_edge.runtime.ports import Port, StagePorts

PLAN = b"an engine"


class Loaded:
    """A stage with what it runs on."""

    def __init__(self, stage: TensorRTStage, device: FakeDevice, trt: FakeTensorRT) -> None:
        self.stage, self.device, self.trt = stage, device, trt

    def since(self) -> list[str]:
        """Device calls since the last time."""
        calls = [c for c in self.device.calls if c not in ("event.synchronize", "new_event")]
        self.device.calls.clear()
        return calls


def load(folder: Path, ports: StagePorts, engine: Engine, **properties: Any) -> Loaded:
    device = FakeDevice(**properties)
    trt = FakeTensorRT(device, {PLAN: engine})
    backend = TensorRTBackend("tensorrt", load_module=trt.load, open_device=lambda: device)
    path = folder / "stage.engine"
    path.write_bytes(PLAN)
    options = StageOptions(sha256=hashlib.sha256(PLAN).hexdigest())
    return Loaded(backend.load_stage(path, ports, options), device, trt)


ADD = StagePorts(
    "adder",
    (Port("a", "float32", ("n", 4)), Port("b", "float32", ("n", 4))),
    (Port("sum", "float32", ("n", 4)),),
)


def add_engine(**changes: Any) -> Engine:
    wide = ((1, 4), (8, 4), (4096, 4))
    engine = Engine(
        inputs={"a": ("FLOAT", (-1, 4)), "b": ("FLOAT", (-1, 4))},
        outputs={"sum": ("FLOAT", (-1, 4))},
        function=lambda a, b: {"sum": a + b},
        profiles=[{"a": wide, "b": wide}],
    )
    for name, value in changes.items():
        setattr(engine, name, value)
    return engine


def rows(n: int, value: float) -> np.ndarray:
    return np.full((n, 4), value, dtype=np.float32)
