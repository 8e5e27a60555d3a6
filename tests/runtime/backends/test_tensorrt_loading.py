"""What the TensorRT backend loads, and what it refuses: engines, digests, plugins."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.runtime.backends.fake_tensorrt import Engine, FakeDevice, FakeTensorRT
from tests.runtime.backends.loaded_engine import ADD, PLAN, add_engine, load, rows
from visionllm_edge.runtime.backends import StageOptions, load_backend
from visionllm_edge.runtime.backends.tensorrt import TensorRTBackend
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.manifest import FileEntry


def test_both_names_are_backends() -> None:
    assert load_backend("tensorrt").name == "tensorrt"
    assert load_backend("tensorrt_rtx").name == "tensorrt_rtx"


def bundle(folder: Path, files: dict[str, bytes], created_by: dict[str, str] | None = None) -> Any:
    entries = {}
    for relative, content in files.items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        entries[relative] = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    manifest = SimpleNamespace(files=entries, created_by=created_by or {})
    return SimpleNamespace(root=folder, manifest=manifest, file=lambda name: folder / name)


def backend_of(engines: dict[bytes, Engine], **properties: Any) -> tuple[Any, FakeTensorRT]:
    device = FakeDevice(**properties)
    trt = FakeTensorRT(device, engines)
    return TensorRTBackend("tensorrt", load_module=trt.load, open_device=lambda: device), trt


ENGINE = "engines/adder.engine"


def test_an_engine_of_a_bundle(tmp_path: Path) -> None:
    made = bundle(tmp_path, {ENGINE: PLAN})
    backend, trt = backend_of({PLAN: add_engine()})
    stage = backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
    assert stage.ports is ADD
    assert stage.run({"a": rows(1, 1), "b": rows(1, 1)})["sum"][0, 0] == 2
    assert trt.host_code_allowed is False


def test_an_engine_that_nobody_vouches_for(tmp_path: Path) -> None:
    backend, trt = backend_of({PLAN: add_engine()})
    made = bundle(tmp_path / "bundle", {ENGINE: PLAN})
    stray = tmp_path / "stray.engine"
    stray.write_bytes(PLAN)
    for options in (StageOptions(), StageOptions(bundle=made)):
        with pytest.raises(BackendError, match=r"'stray\.engine' is native code.*not\. Load it"):
            backend.load_stage(stray, ADD, options)
    (tmp_path / "bundle" / "engines" / "extra.engine").write_bytes(PLAN)
    with pytest.raises(BackendError, match="native code"):
        extra = tmp_path / "bundle" / "engines" / "extra.engine"
        backend.load_stage(extra, ADD, StageOptions(bundle=made))
    # TensorRT has seen none of them.
    assert trt.host_code_allowed is None


def test_a_changed_engine(tmp_path: Path) -> None:
    made = bundle(tmp_path, {ENGINE: PLAN})
    (tmp_path / ENGINE).write_bytes(PLAN + b"!")
    backend, _ = backend_of({PLAN + b"!": add_engine()})
    with pytest.raises(BackendError, match=r"'adder\.engine' is changed"):
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
    (tmp_path / ENGINE).unlink()
    with pytest.raises(BackendError, match="cannot be read"):
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))


def test_an_engine_of_another_version(tmp_path: Path) -> None:
    made = bundle(tmp_path, {ENGINE: b"older"}, {"tensorrt": "10.1.0"})
    backend, _ = backend_of({})
    with pytest.raises(BackendError) as refusal:
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
    for part in (
        "stage 'adder': TensorRT 10.3.0 cannot load 'adder.engine'",
        "(the plan was made by another version)", "built with 10.1.0", "runtime is 10.3.0",
        "Fake GPU (sm 89)", "build the bundle on this device",
    ):  # fmt: skip
        assert part in str(refusal.value)


def changed_end(**change: Any) -> dict[str, Any]:
    return {"inputs": {"a": ("FLOAT", (-1, 4)), "b": ("FLOAT", (-1, 4))} | change}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (changed_end(c=("FLOAT", (1,))), r"names inputs \['a', 'b'\], the engine has"),
        (changed_end(a=("HALF", (-1, 4))), r"says input a \[n, 4\] float32, .* float16"),
        (changed_end(a=("FP8", (-1, 4))), "FP8"),
        (changed_end(a=("FLOAT", (-1, 5))), r"the engine has \[-1, 5\]"),
        (changed_end(a=("FLOAT", (-1,))), r"the engine has \[-1\]"),
        (changed_end(a=("FLOAT", (2, 4)), b=("FLOAT", (3, 4))), r"input b .* \[3, 4\]"),
        ({"outputs": {"total": ("FLOAT", (-1, 4))}}, "names outputs"),
        ({"layouts": {"a": "CHW32"}}, "layout LINEAR, the engine has CHW32"),
    ],
)
def test_a_manifest_that_does_not_fit(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackendError, match="stage 'adder'.*" + message):
        load(tmp_path, ADD, add_engine(**changes))


def test_plugin_libraries_of_the_bundle(tmp_path: Path) -> None:
    library = "plugins/libvisionllm.so"
    made = bundle(tmp_path, {ENGINE: PLAN, library: b"elf"})
    backend, trt = backend_of({PLAN: add_engine()})
    for _ in range(2):
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
    assert trt.libraries == [str(tmp_path / library)]
    backend, trt = backend_of({PLAN: add_engine()})
    trt.fail["load_library"] = 1
    with pytest.raises(BackendError, match=r"'libvisionllm\.so': TensorRT 10\.3\.0.*wrong ABI"):
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
    (tmp_path / library).write_bytes(b"evil")
    backend, trt = backend_of({PLAN: add_engine()})
    with pytest.raises(BackendError, match="is changed"):
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
    assert trt.libraries == []


def test_kernels_of_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from visionllm_edge.plugins.tensorrt_glue import python_plugin

    given: list[object] = []
    monkeypatch.setattr(python_plugin, "register", lambda trt, *, kernels: given.append(kernels))
    kernels = {"plugins/Op.sm_89.cubin": b"ada", "plugins/Op.sm_87.cubin": b"orin"}
    made = bundle(tmp_path, {ENGINE: PLAN, **kernels})
    backend, _ = backend_of({PLAN: add_engine()})
    for _ in range(2):
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
    assert given == [{"Op": b"ada"}]
    backend, _ = backend_of({PLAN: add_engine()}, sm=90, name="H100")
    with pytest.raises(BackendError, match=r"'Op' has kernels for sm 87, 89.*H100 with sm 90"):
        backend.load_stage(tmp_path / ENGINE, ADD, StageOptions(bundle=made))
