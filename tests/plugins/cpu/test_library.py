"""Finding, building and registering the CPU library; what it says when it cannot run."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from tests.plugins.cpu.nodes import one_node_model, run
from visionllm_edge.plugins.cpu import build
from visionllm_edge.plugins.cpu.build import CpuBuildError, build_library, main
from visionllm_edge.plugins.cpu.library import SWITCH, find_library, instruction_set
from visionllm_edge.plugins.cpu.sources import HEADERS, SOURCES
from visionllm_edge.plugins.grid_sample_prompt_pool.spec import GRID_SAMPLE_PROMPT_POOL


def test_every_source_file_is_listed(repository: Path) -> None:
    plugins = repository / "plugins"
    there = {path.relative_to(plugins).as_posix() for path in (plugins / "cpu").glob("*.[ch]*")}
    there |= {path.relative_to(plugins).as_posix() for path in plugins.glob("*/cpu_*.*")}
    assert there == {*SOURCES, *HEADERS}


def test_find_library_takes_the_newest(tmp_path: Path) -> None:
    assert find_library(tmp_path) is None
    for age, name in enumerate(["_kernels.so", "_kernels.abi3.so"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "other.so").touch()
    assert find_library(tmp_path) == tmp_path / "_kernels.so"


def test_the_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_kernels.so").touch()
    monkeypatch.setenv(SWITCH, "0")
    assert find_library(tmp_path) is None
    monkeypatch.setenv(SWITCH, "1")
    assert find_library(tmp_path) is not None
    monkeypatch.setenv(SWITCH, "off")
    with pytest.raises(ValueError, match=r"expected 0 .* or 1 .*, got 'off'"):
        find_library(tmp_path)


def test_the_processor_gets_its_widest_set(cpu_library: Path) -> None:
    sets = ("avx512bf16", "avx512vnni", "avx512", "avx2", "portable")
    assert instruction_set(cpu_library) in sets


def test_an_unknown_set_is_refused(cpu_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONLLM_EDGE_CPU_ISA", "sse9")
    assert instruction_set(cpu_library) == ""
    message = r"expected avx512bf16, avx512vnni, avx512, avx2 or portable, .* got 'sse9'"
    with pytest.raises(Exception, match=message):
        ort.SessionOptions().register_custom_ops_library(str(cpu_library))


def test_one_library_serves_many_sessions(cpu_library: Path) -> None:
    model = one_node_model(GRID_SAMPLE_PROMPT_POOL)
    inputs = {
        "features": np.ones((1, 2, 2, 3), np.float32),
        "masks": np.ones((1, 4, 4), np.float32),
        "region_image": np.zeros(1, np.int32),
    }
    results = [run(model, cpu_library, inputs) for _ in range(3)]
    assert all(np.array_equal(result, results[0]) for result in results)


def test_an_old_onnx_runtime_is_refused_with_a_message(cpu_library: Path) -> None:
    # The table of a runtime that knows nothing newer than version 1: slot 0 makes a status.
    said: list[bytes] = []
    asked: list[int] = []
    make_status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    get_version = ctypes.CFUNCTYPE(ctypes.c_void_p)

    def status(code: int, message: bytes) -> int:
        said.append(message)
        return 0xBEEF

    create = make_status(status)
    table = (ctypes.c_void_p * 1)(ctypes.cast(create, ctypes.c_void_p))

    def table_of(version: int) -> int:
        asked.append(version)
        return ctypes.addressof(table) if version == 1 else 0

    api = get_api(table_of)
    text = ctypes.create_string_buffer(b"1.5.2")
    version = get_version(lambda: ctypes.addressof(text))
    base = (ctypes.c_void_p * 2)(
        ctypes.cast(api, ctypes.c_void_p), ctypes.cast(version, ctypes.c_void_p)
    )
    register = ctypes.CDLL(str(cpu_library)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base)) == 0xBEEF
    assert asked == [17, 1]
    assert b"expected ONNX Runtime 1.17 or newer, got 1.5.2. Update" in said[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the symbol table with nm")
def test_nothing_but_the_entry_points_is_shared(cpu_library: Path) -> None:
    # An inline function compiled for AVX-512 must not be what another set's code is linked to.
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    listed = subprocess.run(
        [nm, "-DC", "--defined-only", str(cpu_library)], capture_output=True, text=True, check=True
    )
    names = [line.split(maxsplit=2)[2] for line in listed.stdout.splitlines()]
    ours = [name for name in names if "std::" not in name]
    assert sorted(ours) == ["RegisterCustomOps", "visionllm_edge_cpu_isa"]


def test_without_a_compiler_the_build_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CpuBuildError, match=r"expected a C\+\+17 compiler .* or set CXX"):
        build_library(tmp_path / "out.so")


def test_a_failing_compiler_is_an_error_of_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "find_compiler", lambda: [sys.executable, "-c", "exit(3)"])
    result = CliRunner().invoke(main, ["-o", str(tmp_path / "out.so")])
    assert result.exit_code == 1
    assert "failed with exit status 3" in result.output
