"""The driver calls themselves, against a stand-in of `cuda.bindings.driver`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from visionllm_edge.plugins.cuda.launch import KernelLaunch
from visionllm_edge.plugins.tensorrt_glue.driver import CudaDriver

LAUNCH = KernelLaunch("msda_f32_any", (3, 2, 1), (128, 1, 1), 64, (5, 6))


class FakeCuda(ModuleType):
    def __init__(self) -> None:
        super().__init__("cuda.bindings.driver")
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.status = 0

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            if name == "cuGetErrorString":
                return 0, b"no kernel image is available"
            return (self.status,) if name == "cuLaunchKernel" else (self.status, 11)

        return call


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    import sys

    bindings, fake = ModuleType("cuda.bindings"), FakeCuda()
    bindings.driver = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    yield fake


def test_a_launch_is_one_call_with_pointers_then_ints(cuda: FakeCuda) -> None:
    CudaDriver().launch(11, LAUNCH, [4096, 8192], 77)
    ((name, arguments),) = cuda.calls
    assert name == "cuLaunchKernel"
    values = (4096, 8192, 5, 6)
    types = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
    assert arguments == (11, 3, 2, 1, 128, 1, 1, 64, 77, (values, types), 0)


def test_loading_is_a_module_and_a_function(cuda: FakeCuda) -> None:
    driver = CudaDriver()
    assert driver.context() == 11
    assert driver.function(driver.load(b"cubin"), "msda_f32_any") == 11
    assert cuda.calls == [
        ("cuCtxGetCurrent", ()),
        ("cuModuleLoadData", (b"cubin",)),
        ("cuModuleGetFunction", (11, b"msda_f32_any")),
    ]


def test_a_status_becomes_an_error_with_its_name(cuda: FakeCuda) -> None:
    cuda.status = 209
    with pytest.raises(
        RuntimeError, match=r"cuModuleLoadData failed with CUDA status 209 .no kernel"
    ):
        CudaDriver().load(b"cubin")


def test_missing_bindings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(RuntimeError, match=r"pip install 'visionllm-edge\[cuda\]'"):
        CudaDriver()
