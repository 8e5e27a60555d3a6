"""The C++ plugins, built with our stand-in header, in TensorRT-RTX: loaded, taken, built, refused.

The stand-in (include/NvInferRuntime.h) declares the binary interface; that this TensorRT-RTX works
with the result is what shows it right. With the SDKs' own headers the library was built by hand;
plugins/tensorrt_glue/README.md has the list.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.plugins.tensorrt_glue.rtx import HERE, MSDA, POOL, needs_rtx, parse_and_build
from visionllm_edge.plugins.tensorrt_glue.library import build_library

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")
TAKEN = "Found registered plugin: {}. Importing this node as a plugin."


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both operators, for one GPU generation."""
    output = tmp_path_factory.mktemp("plugins") / "libvisionllm_plugins.so"
    built = build_library(include=HERE / "include", output=output, sms=[87])
    assert (built.tensorrt, built.sms, built.ops) == ("11.1", (87,), (POOL, MSDA))
    assert built.size_bytes == output.stat().st_size
    return output


@needs_nvcc
def test_the_library_needs_no_tensorrt_and_shows_two_functions(library: Path) -> None:
    dynamic = subprocess.run(
        ["readelf", "--dynamic", "--wide", library], capture_output=True, text=True, check=True
    ).stdout
    needed = [line.split("[")[1].split("]")[0] for line in dynamic.splitlines() if "NEEDED" in line]
    allowed = {"libstdc++", "libgcc_s", "libc", "libm", "libdl", "libpthread", "librt"}
    assert {name.split(".so")[0] for name in needed} <= {*allowed, "ld-linux-x86-64"}
    symbols = subprocess.run(
        ["nm", "--dynamic", "--defined-only", library], capture_output=True, text=True, check=True
    ).stdout
    functions = {line.split()[-1] for line in symbols.splitlines() if " T " in line}
    assert functions == {"getCreators", "setLoggerFinder"}


@pytest.mark.trt
@needs_rtx
@needs_nvcc
@pytest.mark.parametrize(
    ("op", "dtype", "how"),
    [
        (MSDA, "float32", "load_library"),
        (MSDA, "float16", "cdll"),
        (MSDA, "float16", "cdll before"),
        (POOL, "float16", "load_library"),
    ],
)
def test_the_library_is_taken(tmp_path: Path, library: Path, op: str, dtype: str, how: str) -> None:
    told = parse_and_build(tmp_path, op, dtype, plugin=how, library=str(library), function=True)
    assert told["parsed"], told["errors"]
    assert {MSDA, POOL} <= set(told["creators"])
    assert TAKEN.format(op) in told["log"]
    assert told["layers"] == ["LayerType.PLUGIN_V3"]
    assert told["output"][0] == ([-1, -1, 2, 8] if op == MSDA else [-1, 8])
    assert told["engine_bytes"] > 10_000
    assert told["names_the_plugin"]


@pytest.mark.trt
@needs_rtx
@needs_nvcc
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"levels": 3}, "'level_start_index' axis 0 (L) expected 4, got 3"),
        ({"locations": "float16"}, "no supported combination of input types"),
    ],
    ids=["shapes", "types"],
)
def test_wrong_shapes_and_types_are_refused(
    tmp_path: Path, library: Path, change: dict[str, object], said: str
) -> None:
    from tests.plugins.tensorrt_glue.rtx import SHAPES, TYPES

    shapes, types = [*SHAPES[MSDA]], TYPES[MSDA]("float16")
    shapes[2] = [change.get("levels", 4)]  # type: ignore[list-item]
    types[3] = str(change.get("locations", "float32"))
    told = parse_and_build(
        tmp_path,
        MSDA,
        "float16",
        plugin="cdll",
        library=str(library),
        shapes=shapes,
        types=types,
    )
    assert not told["parsed"]
    assert any(said in line for line in [*told["log"], *told["lines"]]), told
