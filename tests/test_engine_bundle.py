"""A bundle of engines gives the answers of the CPU bundle it was made from.

The engines are stand-ins: each runs the CPU graph of its stage by ONNX Runtime, behind the fake
TensorRT on the fake device. Everything between the pipeline and an engine is the real code:
buffers, profiles, recorded graphs, the cache, maps that stay on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.backends.fake_tensorrt import Engine, FakeDevice, FakeTensorRT
from visionllm_edge.export.verify import verify_bundle
from visionllm_edge.runtime import VisionLLM, shapes_world
from visionllm_edge.runtime.backends import StageOptions, tensorrt
from visionllm_edge.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from visionllm_edge.runtime.backends.tensorrt import TensorRTBackend
from visionllm_edge.runtime.backends.tensorrt_stage import TensorRTStage
from visionllm_edge.runtime.bundle import Bundle, BundleWriter
from visionllm_edge.runtime.errors import ConfigError, ParityError
from visionllm_edge.runtime.ports import Port, StagePorts

TYPES = {"float32": "FLOAT", "int64": "INT64"}
LONGEST = 4096


def engine_of(path: Path, ports: StagePorts, **changes: Any) -> Engine:
    """An engine that computes what a CPU graph computes."""
    stage = OnnxRuntimeBackend().load_stage(path, ports, StageOptions())

    def function(**given: np.ndarray) -> Mapping[str, np.ndarray]:
        return {name: array.copy() for name, array in stage.run(given).items()}

    def ends(side: tuple[Port, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {
            p.name: (TYPES[p.dtype], tuple(-1 if isinstance(a, str) else a for a in p.shape))
            for p in side
        }

    def limits(port: Port, longest: int) -> Any:
        low = tuple(1 if isinstance(axis, str) else axis for axis in port.shape)
        return low, low, tuple(longest if isinstance(a, str) else a for a in port.shape)

    profiles = [
        {
            p.name: limits(p, longest)
            for p in ports.inputs
            if any(isinstance(a, str) for a in p.shape)
        }
        for longest in (LONGEST, LONGEST // 2)
    ]
    return Engine(ends(ports.inputs), ends(ports.outputs), function, profiles, **changes)


def engine_bundle(cpu: Bundle, folder: Path) -> tuple[Path, dict[bytes, Engine]]:
    """The CPU bundle with an engine in the place of every graph."""
    engines: dict[bytes, Engine] = {}
    stages = {}
    with BundleWriter(folder) as writer:
        for name, spec in cpu.manifest.stages.items():
            variants = []
            for variant in spec.variants:
                path = cpu.file(variant.model)
                plan = f"engine of {variant.model}".encode()
                engines[plan] = engine_of(path, spec.ports(name))
                model = f"engines/{path.stem}.engine"
                writer.add_bytes(model, plan)
                variants.append(replace(variant, model=model, canonical=None))
            stages[name] = replace(spec, variants=tuple(variants))
        graphs = {path for path in cpu.manifest.files if path.startswith("stages/")}
        for other in cpu.manifest.files.keys() - graphs:
            writer.add_file(other, cpu.file(other))
        target = replace(cpu.manifest.target, name="rtx-ada", backend="tensorrt")
        manifest = replace(cpu.manifest, target=target, stages=stages)
        writer.commit(manifest)
    return folder, engines


class Device:
    """The fake installation behind a loaded model."""

    def __init__(self, engines: dict[bytes, Engine], **properties: Any) -> None:
        self.device = FakeDevice(**properties)
        self.trt = FakeTensorRT(self.device, engines)

    def backend(self) -> TensorRTBackend:
        return TensorRTBackend(
            "tensorrt", load_module=self.trt.load, open_device=lambda: self.device
        )


@pytest.fixture(scope="module")
def made(
    tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[bytes, Engine]]:
    return engine_bundle(Bundle.open(tiny_bundle), tmp_path_factory.mktemp("engines") / "bundle")


@pytest.fixture(params=["discrete", "integrated"])
def loaded(
    made: tuple[Path, dict[bytes, Engine]],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[VisionLLM, Device]:
    folder, engines = made
    device = Device(engines, maps_host_memory=request.param == "integrated")
    monkeypatch.setattr(tensorrt, "enterprise", device.backend)
    return VisionLLM.load(folder), device


ASKED: dict[str, Callable[[VisionLLM, Any], Any]] = {
    "detect": lambda model, image: model.detect(image, ["circle", "red square"], masks=True),
    "again": lambda model, image: model.detect(image, ["triangle"]),
    "free": lambda model, image: model.detect(image, ["circle"], mode="free"),
    "caption": lambda model, image: model.caption(image),
}


def test_the_answers_of_the_cpu_bundle(tiny_bundle: Path, loaded: tuple[VisionLLM, Device]) -> None:
    model, device = loaded
    reference = VisionLLM.load(tiny_bundle)
    rng = np.random.default_rng(5)
    images = [shapes_world.make_scene(rng).image for _ in range(2)]
    for image in (*images, images[0]):
        for name, ask in ASKED.items():
            assert comparable(ask(model, image)) == comparable(ask(reference, image)), name
    assert device.trt.runs > 50


def comparable(result: Any) -> object:
    """The whole answer: the graphs are the same, so nothing may differ."""
    detections = [
        (d.label, d.score, d.box_xyxy, None if d.mask is None else d.mask.tobytes())
        for d in getattr(result, "detections", ())
    ]
    return getattr(result, "text", None), detections


def test_maps_stay_on_the_device_and_decoding_is_replayed(
    made: tuple[Path, dict[bytes, Engine]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, engines = made
    device = Device(engines)
    monkeypatch.setattr(tensorrt, "enterprise", device.backend)
    model = VisionLLM.load(folder)
    image = shapes_world.make_scene(np.random.default_rng(5)).image
    copied: set[int] = set()
    kept: list[int] = []
    copy_out, run_kept = device.device.copy_out, TensorRTStage.run_kept

    def watched_copy(target: int, source: int, nbytes: int, stream: Any) -> None:
        copied.add(source)
        copy_out(target, source, nbytes, stream)

    def watched_run(stage: TensorRTStage, inputs: Any) -> Any:
        outputs: Any = run_kept(stage, inputs)
        kept.extend(array.address for array in outputs.values())
        return outputs

    monkeypatch.setattr(device.device, "copy_out", watched_copy)
    monkeypatch.setattr(TensorRTStage, "run_kept", watched_run)
    assert model.detect(image, ["circle", "square"], threshold=0.01, masks=True).detections
    assert len(kept) == 6, "four maps, memory and text"
    assert copied and not copied & set(kept), "something that shall stay came to the host"
    model.caption(image)
    decoder: Any = model._pipeline._stages.get("llm_decoder")
    # The cache has two buffers: a step from the first to the second, and one back.
    assert decoder.recorded == 2


def test_engines_are_verified_by_the_golden_files(
    made: tuple[Path, dict[bytes, Engine]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, engines = made
    monkeypatch.setattr(tensorrt, "enterprise", Device(engines).backend)
    report = verify_bundle(folder)
    assert {verdict.stage for verdict in report.stages} == set(Bundle.open(folder).manifest.stages)
    with pytest.raises(ConfigError, match="no --checkpoint"):
        verify_bundle(folder, checkpoint=folder)


def test_a_wrong_engine_is_found_by_verify(
    made: tuple[Path, dict[bytes, Engine]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, engines = made

    def spoil(plan: bytes, engine: Engine) -> Engine:
        if b"det_encoder" not in plan:
            return engine
        right = engine.function
        return replace(
            engine, function=lambda **given: {k: v * 1.01 for k, v in right(**given).items()}
        )

    wrong = {plan: spoil(plan, engine) for plan, engine in engines.items()}
    monkeypatch.setattr(tensorrt, "enterprise", Device(wrong).backend)
    with pytest.raises(ParityError, match="det_encoder"):
        verify_bundle(folder)
