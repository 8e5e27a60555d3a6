"""Run one bundle on this machine and tell about it in one line of JSON; a child of ``gpu_check``.

Engines run by their TensorRT. A bundle for ONNX Runtime runs its vision encoder once by the CUDA
provider and once by the CPU's, and tells how far the two are apart.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from visionllm_edge.runtime import VisionLLM, shapes_world
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import EdgeError

__all__ = ["main"]

_RUNS = 20


def main(arguments: list[str]) -> int:
    """Tell about the bundle at the given path."""
    try:
        bundle = Bundle.open(arguments[0])
        backend = bundle.manifest.target.backend
        told = _graphs(bundle) if backend == "onnxruntime" else _engines(Path(arguments[0]))
    except EdgeError as e:
        told = {"status": "not run", "reason": str(e)}
    print(json.dumps(told))
    return 0


def _engines(path: Path) -> dict[str, object]:
    model = VisionLLM.load(path)
    image = shapes_world.make_scene(np.random.default_rng(5)).image
    found = model.detect(image, ["circle", "square"], masks=True)
    pictures = [shapes_world.make_scene(np.random.default_rng(i)).image for i in range(_RUNS)]
    turn = iter(pictures)
    return {
        "status": "ran",
        "detections": [
            {"label": d.label, "score": d.score, "box": list(d.box_xyxy)} for d in found.detections
        ],
        "detect_ms": _median_ms(lambda: model.detect(next(turn), ["circle", "square"])),
    }


def _graphs(bundle: Bundle) -> dict[str, object]:
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return {"status": "not run", "reason": "this ONNX Runtime has no CUDA provider"}
    path = str(bundle.stage_model("vision_encoder"))
    size = bundle.manifest.vision().image_size
    pixels = np.random.default_rng(0).standard_normal((2, 3, size, size), np.float32)
    outputs, times = {}, {}
    for provider in ("CUDAExecutionProvider", "CPUExecutionProvider"):
        session = ort.InferenceSession(path, providers=[provider])
        if session.get_providers()[0] != provider:
            return {"status": "not run", "reason": f"{provider} could not be loaded"}
        name = session.get_inputs()[0].name
        outputs[provider] = session.run(None, {name: pixels})[0]

        def call(session: ort.InferenceSession = session, name: str = name) -> None:
            session.run(None, {name: pixels})

        times[provider] = _median_ms(call)
    cuda, cpu = outputs.values()
    return {
        "status": "ran",
        "vision_encoder_ms": times,
        "max_difference": float(np.abs(cuda - cpu).max()),
    }


def _median_ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
