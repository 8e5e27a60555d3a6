"""A kit from folder to sealed bundle: resumed, invalidated, refused, marked."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.runtime.engines.small_kit import needs_rtx, sums_graph, sums_plan, write_kit
from visionllm_edge.runtime.bundle import Bundle, sha256_of_file
from visionllm_edge.runtime.engines import kit_build
from visionllm_edge.runtime.engines.cache import EngineCache
from visionllm_edge.runtime.engines.gpu import Gpu, NoGpu
from visionllm_edge.runtime.engines.kit_build import BuildOptions, build_kit, kit_status
from visionllm_edge.runtime.engines.kit_folder import write_kit_plan
from visionllm_edge.runtime.engines.plan import KIT_NAME, KitPlan, KitTarget
from visionllm_edge.runtime.engines.record import GoldenResult
from visionllm_edge.runtime.engines.request import BuildAnswer, BuildRequest, CheckRequest
from visionllm_edge.runtime.engines.tensorrt_module import TensorRT, probe
from visionllm_edge.runtime.errors import BackendError, BundleError, ParityError
from visionllm_edge.runtime.manifest import InputLimits

ORIN = KitTarget("jetson-orin-jp6", "tensorrt", "fp32", (87,), "10.3")


class Machine:
    """A builder and a GPU made of nothing; remembers what was built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.backend, self.version = "tensorrt_rtx", "1.7.1"
        self.gpu: Gpu | NoGpu = NoGpu("there is no driver")
        self.built: list[str] = []
        self.requests: list[BuildRequest] = []
        self.fail_at: str | None = None
        self.golden = GoldenResult("passed", worst="y", share=0.5, errors={"y": 0.1})
        self.golden_error: Exception | None = None
        monkeypatch.setattr(kit_build, "run_build", self.build)
        monkeypatch.setattr(kit_build, "load", self.load)
        monkeypatch.setattr(kit_build, "find_gpu", lambda: self.gpu)
        monkeypatch.setattr(kit_build, "run_check", self.check)

    def load(self, backend: str) -> TensorRT:
        module = ModuleType(backend)
        return TensorRT(backend, module, self.version, probe(module))

    def build(self, request: BuildRequest, *, phase: Any) -> BuildAnswer:
        name = request.plan.name
        self.requests.append(request)
        if name == self.fail_at:
            raise KeyboardInterrupt
        self.built.append(name)
        content = f"engine of {name}".encode()
        Path(request.engine).write_bytes(content)
        return BuildAnswer(None, None, self.version, len(content), 0.1, 0.2, 1000, 3, 0, 0)

    def check(self, request: CheckRequest) -> GoldenResult:
        assert sha256_of_file(Path(request.build.engine)) == request.engine_sha256
        assert [port.name for port in request.inputs] == ["x"]
        if self.golden_error is not None:
            raise self.golden_error
        return self.golden


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return write_kit(tmp_path / "kit")


def change_graph(kit: Path) -> None:
    """Another graph under the same name, as `kit make` would write it."""
    sums_graph(kit / "graphs" / "sums.onnx", shift=1.0)
    data = json.loads((kit / KIT_NAME).read_text(encoding="utf-8"))
    write_kit_plan(kit, KitPlan.from_dict(data))


def test_a_second_build_builds_nothing(machine: Machine, kit: Path) -> None:
    first = build_kit(kit, None)
    assert machine.built == ["sums", "attention"]
    assert build_kit(kit, None).records == first.records
    assert machine.built == ["sums", "attention"]


def test_an_interruption_leaves_a_resumable_kit(
    machine: Machine, kit: Path, tmp_path: Path
) -> None:
    machine.fail_at = "attention"
    with pytest.raises(KeyboardInterrupt):
        build_kit(kit, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    told = kit_status(kit)
    assert told["sums"] is not None and told["attention"] is None
    machine.fail_at = None
    assert build_kit(kit, tmp_path / "out").bundle == tmp_path / "out"
    assert machine.built == ["sums", "attention"]


def test_a_changed_graph_invalidates_its_record_only(machine: Machine, kit: Path) -> None:
    build_kit(kit, None)
    change_graph(kit)
    told = kit_status(kit)
    assert told["sums"] is None and told["attention"] is not None
    build_kit(kit, None)
    assert machine.built == ["sums", "attention", "sums"]


def test_a_damaged_engine_is_built_again(machine: Machine, kit: Path) -> None:
    build_kit(kit, None)
    (kit / "build" / "sums.engine").write_bytes(b"engine of sUms")
    assert kit_status(kit)["sums"] is None
    build_kit(kit, None)
    assert machine.built == ["sums", "attention", "sums"]


def test_another_release_builds_again(machine: Machine, kit: Path) -> None:
    build_kit(kit, None)
    machine.version = "1.7.2"
    build_kit(kit, None)
    assert machine.built == ["sums", "attention"] * 2


def test_a_damaged_kit_is_refused_before_anything_is_built(machine: Machine, kit: Path) -> None:
    weights = kit / "graphs" / "sums.weights"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"sums\.weights"):
        build_kit(kit, None)
    assert machine.built == []


def test_engines_move_between_kits_through_the_cache(
    machine: Machine, kit: Path, tmp_path: Path
) -> None:
    options = BuildOptions(cache=EngineCache(tmp_path / "cache"))
    build_kit(kit, None, options)
    other = write_kit(tmp_path / "other")
    records = build_kit(other, tmp_path / "out", options).records
    assert machine.built == ["sums", "attention"]
    assert all(record.reused for record in records)
    Bundle.open(tmp_path / "out")


def test_a_part_is_built_but_not_sealed(machine: Machine, kit: Path, tmp_path: Path) -> None:
    report = build_kit(kit, tmp_path / "out", BuildOptions(stages=("attention",)))
    assert machine.built == ["attention"]
    assert report.bundle is None and not (tmp_path / "out").exists()


def test_the_sealed_bundle_says_what_was_not_run(
    machine: Machine, kit: Path, tmp_path: Path
) -> None:
    build_kit(kit, tmp_path / "out")
    bundle = Bundle.open(tmp_path / "out")
    manifest = bundle.manifest
    assert manifest.target.backend == "tensorrt_rtx"
    assert manifest.created_by["tensorrt_rtx"] == "1.7.1"
    assert "stand-in" not in manifest.created_by
    assert bundle.stage_model("sums").read_bytes() == b"engine of sums"
    parity = manifest.stages["sums"].parity
    assert parity["status"] == "not run on a device"
    assert "there is no driver" in json.dumps(parity)
    shapes = sums_plan().profiles[0].shapes["x"]
    assert manifest.stages["sums"].limits == {"x": InputLimits(shapes.min, shapes.max)}
    assert manifest.stages["attention"].limits is None
    forms = manifest.stages["attention"].lowering["engines/attention.engine"]
    assert isinstance(forms, list) and forms[0]["form"] == "plugin"
    report = json.loads(bundle.file("reports/build.json").read_text(encoding="utf-8"))
    assert [stage["name"] for stage in report["stages"]] == ["sums", "attention"]
    assert report["stages"][0]["peak_rss_bytes"] == 1000
    assert str(tmp_path) not in json.dumps(report) + json.dumps(manifest.to_dict())


def test_a_device_checks_every_golden_file(machine: Machine, kit: Path, tmp_path: Path) -> None:
    machine.gpu = Gpu("RTX 4090", 89, 2**34, "13.0")
    build_kit(kit, tmp_path / "out")
    parity = Bundle.open(tmp_path / "out").manifest.stages["sums"].parity
    assert parity["status"] == "golden outputs passed on RTX 4090"


def test_a_wrong_engine_is_not_sealed(machine: Machine, kit: Path, tmp_path: Path) -> None:
    machine.gpu = Gpu("RTX 4090", 89, 2**34, "13.0")
    machine.golden_error = ParityError("stage 'sums': output 'y' is wrong")
    with pytest.raises(ParityError):
        build_kit(kit, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stand_in_is_marked(machine: Machine, tmp_path: Path) -> None:
    kit = write_kit(tmp_path / "kit", target=ORIN)
    build_kit(kit, tmp_path / "out", BuildOptions(stand_in="tensorrt_rtx"))
    manifest = Bundle.open(tmp_path / "out").manifest
    assert manifest.target.backend == "tensorrt_rtx" and manifest.target.name == "rtx-ada"
    assert manifest.created_by["stand-in"] == "TensorRT-RTX 1.7.1 for TensorRT 10.3"
    # The stand-in knows no SM 8.7: it builds for its own default.
    assert {request.sm for request in machine.requests} == {()}


@pytest.mark.parametrize(
    ("version", "gpu", "words"),
    [
        (
            "10.3.0",
            NoGpu("no driver"),
            "TensorRT builds on the device.*--with tensorrt_rtx",
        ),
        ("10.3.0", Gpu("H100", 90, 1, "13.0"), r"compute capability 8\.7.*H100 has 9\.0"),
        ("11.4.1", Gpu("Orin", 87, 1, "12.6"), r"made for TensorRT 10\.3.*has 11\.4\.1"),
    ],
)
def test_a_kit_for_another_device_or_release_is_refused(
    machine: Machine, tmp_path: Path, version: str, gpu: Gpu | NoGpu, words: str
) -> None:
    kit = write_kit(tmp_path / "kit", target=ORIN)
    machine.version, machine.gpu = version, gpu
    with pytest.raises(BackendError, match=words):
        build_kit(kit, None)
    assert machine.built == []


def test_another_minor_release_is_only_warned_about(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kit = write_kit(tmp_path / "kit", target=ORIN)
    machine.version, machine.gpu = "10.7.0", Gpu("Orin", 87, 1, "12.6")
    build_kit(kit, None)
    assert machine.built == ["sums", "attention"]
    assert "made for TensorRT 10.3, this machine has 10.7.0" in caplog.text


def test_plugins_come_from_python_or_from_the_given_library(
    machine: Machine, kit: Path, tmp_path: Path
) -> None:
    library = tmp_path / "libops.so"
    library.write_bytes(b"library")
    build_kit(kit, None)
    build_kit(kit, tmp_path / "out", BuildOptions(libraries=(library,)))
    # The plain stage is not built again: its engine does not depend on plugins.
    assert machine.built == ["sums", "attention", "attention"]
    assert [r.plugins for r in machine.requests] == ["none", "python", "library"]
    assert Bundle.open(tmp_path / "out").file("plugins/libops.so").read_bytes() == b"library"


@needs_rtx
@pytest.mark.trt
def test_a_jetson_kit_is_replayed_with_tensorrt_rtx(tmp_path: Path) -> None:
    """End to end with a real builder, up to the point where a GPU is needed."""
    kit = write_kit(tmp_path / "kit", target=ORIN)
    report = build_kit(kit, tmp_path / "out", BuildOptions(stand_in="tensorrt_rtx"))
    assert [record.plugins for record in report.records] == [0, 1]
    bundle = Bundle.open(tmp_path / "out")
    assert bundle.stage_model("attention").stat().st_size == report.records[1].engine_bytes
    assert "for TensorRT 10.3" in bundle.manifest.created_by["stand-in"]
