"""`visionllm-edge plugins`: the list, the C++ tables against the specifications, every refusal."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from visionllm_edge.plugins.registry import SEMANTIC_OPS
from visionllm_edge.plugins.semantic_op import SemanticOp
from visionllm_edge.plugins.tensorrt_glue.library import (
    LibraryError,
    headers_version,
    library_ops,
)
from visionllm_edge.runtime.cli import main

REPOSITORY = Path(__file__).resolve().parents[3]
TYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32"}


def plugins(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["plugins", *map(str, arguments)])


def make_headers(folder: Path, version: str = "10.3", *, indirect: bool = False) -> Path:
    folder.mkdir()
    major, minor = version.split(".")
    lines = [f"#define NV_TENSORRT_MAJOR {major} //!< major", f"#define NV_TENSORRT_MINOR {minor}"]
    if indirect:
        lines = [
            f"#define TRT_MAJOR_ENTERPRISE {major}",
            f"#define TRT_MINOR_ENTERPRISE {minor}",
            "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major",
            "#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE //!< minor",
        ]
    (folder / "NvInferVersion.h").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "NvInferRuntime.h").write_text("#pragma once\n", encoding="utf-8")
    return folder


def make_nvcc(path: Path, *, exit_code: int = 0) -> Path:
    """An `nvcc` that knows two generations, notes its arguments and writes its `-o` file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --list-gpu-code ]; then printf "sm_75\\nsm_87\\nsm_90a\\n"; exit 0; fi\n'
        f'printf "%s\\n" "$@" > "{path.parent}/arguments"\n'
        f'if [ {exit_code} != 0 ]; then echo "kernel.cuh(1): error" >&2; exit {exit_code}; fi\n'
        'while [ $# -gt 1 ]; do [ "$1" = -o ] && echo library > "$2"; shift; done\n',
        encoding="utf-8",
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def table_in(source: str) -> list[tuple[str, tuple[str | int, ...], tuple[str, ...]]]:
    """Name, axes and types of every port that a C++ plugin states."""
    rows = re.findall(r'\{"(\w+)", \{([^}]*)\}, \{([^}]*)\}\}', source)
    return [
        (
            name,
            tuple(int(a) if a.isdecimal() else a for a in re.findall(r'"(\w+)"', axes)),
            tuple(TYPE_NAMES[kind.strip()] for kind in types.split(",")),
        )
        for name, axes, types in rows
    ]


def table_of(op: SemanticOp) -> list[tuple[str, tuple[str | int, ...], tuple[str, ...]]]:
    return [(port.name, port.shape, port.dtypes) for port in op.inputs + op.outputs]


@pytest.mark.parametrize("name", sorted(library_ops()))
def test_the_cpp_table_is_the_specification(name: str) -> None:
    op = SEMANTIC_OPS[name]
    folder = REPOSITORY / "plugins" / op.module.rpartition(".")[2]
    source = (folder / "tensorrt_plugin.cpp").read_text(encoding="utf-8")
    assert table_in(source) == table_of(op)
    assert f'kName = "{name}";' in source
    assert f"kInputs = {len(op.inputs)};" in source
    assert f"kOutputs = {len(op.outputs)};" in source
    assert op.attributes == (), "the C++ base stores no attributes"
    # A slip in one axis or one type is a difference.
    for right, wrong in (('"N", ', '"B", '), ("{F32, F16, BF16}", "{F32, BF16, F16}")):
        assert table_in(source.replace(right, wrong, 1)) != table_of(op)


def test_every_operator_with_kernels_has_a_cpp_plugin() -> None:
    assert set(library_ops()) == {"MultiScaleDeformableAttention", "GridSamplePromptPool"}


def test_list_shows_forms_types_and_places() -> None:
    text = plugins("list").output
    for op in SEMANTIC_OPS.values():
        assert f"{op.name}: {op.summary}" in text
    assert "sampling_locations [N, Lq, M, L, P, 2] float32" in text
    assert "value [N, S, M, D] float32 | float16 | bfloat16" in text
    told = json.loads(plugins("list", "--json").output)
    assert set(told) == set(SEMANTIC_OPS)
    for described in told.values():
        assert all(Path(file).is_file() for file in described["forms"].values())
    assert "tensorrt c++ plugin" in told["MultiScaleDeformableAttention"]["forms"]
    assert "tensorrt c++ plugin" not in told["CachedAttention"]["forms"]


@pytest.mark.parametrize("indirect", [False, True])
def test_the_version_is_read_from_the_headers(tmp_path: Path, indirect: bool) -> None:
    headers = make_headers(tmp_path / "include", "11.1", indirect=indirect)
    assert headers_version(headers) == (11, 1)


def test_wrong_headers_are_named(tmp_path: Path) -> None:
    done = plugins("build", "--tensorrt-include", tmp_path)
    assert done.exit_code == 1
    assert "without NvInferRuntime.h" in done.output
    assert "libnvinfer-headers-dev" in done.output
    old = make_headers(tmp_path / "old", "8.6")
    with pytest.raises(
        LibraryError, match=r"TensorRT 10.0 or later .IPluginV3., got headers of 8.6"
    ):
        headers_version(old)
    broken = make_headers(tmp_path / "broken")
    (broken / "NvInferVersion.h").write_text("", encoding="utf-8")
    with pytest.raises(LibraryError, match="to define NV_TENSORRT_MAJOR as a number"):
        headers_version(broken)


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = make_headers(tmp_path / "include")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    done = plugins("build", "--tensorrt-include", headers, "-o", tmp_path / "x.so")
    assert done.exit_code == 1
    assert "needs 'nvcc', which is neither on PATH nor under CUDA_HOME" in done.output


@pytest.mark.parametrize("place", ["PATH", "CUDA_HOME"])
def test_build_calls_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    nvcc = make_nvcc(tmp_path / "cuda" / "bin" / "nvcc")
    system = "/usr/bin:/bin"
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", f"{nvcc.parent}:{system}" if place == "PATH" else system)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda") if place == "CUDA_HOME" else "")
    if place == "CUDA_HOME":
        monkeypatch.setattr("os.defpath", system)
    headers, output = make_headers(tmp_path / "include"), tmp_path / "plugins.so"
    done = plugins("build", "--tensorrt-include", headers, "-o", output, "--sm", 87)
    assert done.exit_code == 0, done.output
    assert "TensorRT 10.3 headers, sm_87, GridSamplePromptPool" in done.output
    assert output.read_text(encoding="utf-8") == "library\n"
    arguments = (nvcc.parent / "arguments").read_text(encoding="utf-8").splitlines()
    assert arguments[arguments.index("-isystem") + 1] == str(headers)
    assert "-gencode=arch=compute_87,code=sm_87" in arguments
    assert "-gencode=arch=compute_87,code=compute_87" in arguments
    sources = [Path(a) for a in arguments if a.endswith(".cpp")]
    assert len(sources) == 3
    assert all(source.is_file() for source in sources)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sm", "90"], "--sm: this nvcc compiles for 75, 87, got 90"),
        (["--op", "Nothing"], "--op: expected one of GridSamplePromptPool, Multi"),
        (["-o", "nowhere/x.so"], "-o: expected an existing folder"),
    ],
)
def test_wrong_options_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    nvcc = make_nvcc(tmp_path / "bin" / "nvcc")
    monkeypatch.setenv("PATH", f"{nvcc.parent}:/usr/bin:/bin")
    headers = make_headers(tmp_path / "include")
    done = plugins("build", "--tensorrt-include", headers, "-o", tmp_path / "x.so", *options)
    assert done.exit_code == 1
    assert said in done.output


def test_what_nvcc_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = make_nvcc(tmp_path / "bin" / "nvcc", exit_code=2)
    monkeypatch.setenv("PATH", f"{nvcc.parent}:/usr/bin:/bin")
    headers = make_headers(tmp_path / "include")
    done = plugins("build", "--tensorrt-include", headers, "-o", tmp_path / "x.so", "--sm", 87)
    assert done.exit_code == 1
    assert "nvcc exited 2 with the headers of TensorRT 10.3:\nkernel.cuh(1): error" in done.output
