"""The ahead-of-time form: what TensorRT is told, and PTX in its parameter order."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.tensorrt_glue.fake_quick_plugins import QuickTensorRT, TensorDesc
from tests.plugins.tensorrt_glue.fakes import DataType, FakeTensorRT
from visionllm_edge.plugins.cuda.compile import available_methods
from visionllm_edge.plugins.ms_deform_attn.cuda import launch
from visionllm_edge.plugins.tensorrt_glue.aot import has_aot, register_aot
from visionllm_edge.plugins.tensorrt_glue.aot_source import aot_ptx, move_outputs_last

MSDA, POOL = "MultiScaleDeformableAttention", "GridSamplePromptPool"
F32, F16, I32 = DataType.FLOAT, DataType.HALF, DataType.INT32
FIXED = [(1, 85, 8, 32), (4, 2), (4,), (1, 900, 8, 4, 4, 2), (1, 900, 8, 4, 4)]
DYNAMIC = [("n", "s", 8, 32), (4, 2), (4,), ("n", "q", 8, 4, 4, 2), ("n", "q", 8, 4, 4)]


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> QuickTensorRT:
    made = QuickTensorRT()
    monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setitem(sys.modules, f"{made.__name__}.plugin", made.plugin)
    assert register_aot(made, images={MSDA: "ptx", POOL: b"ptx"}) == (MSDA, POOL)
    return made


def inputs(shapes: list[tuple[Any, ...]], dtype: DataType) -> list[TensorDesc]:
    types = [dtype, I32, I32, F32, dtype]
    return [TensorDesc(shape, kind) for shape, kind in zip(shapes, types, strict=True)]


def test_a_release_without_the_form_is_refused() -> None:
    assert not has_aot(FakeTensorRT())
    with pytest.raises(RuntimeError, match=r"TensorRT 10.9 or later.*Use the Python plugin"):
        register_aot(FakeTensorRT(), images={})


def test_an_image_for_an_unknown_operator_is_an_error(trt: QuickTensorRT) -> None:
    with pytest.raises(ValueError, match="images: expected operators among"):
        register_aot(trt, images={"CachedAttention": ""})


@pytest.mark.parametrize("dtype", [F32, F16])
def test_the_output_is_described(trt: QuickTensorRT, dtype: DataType) -> None:
    describe, names = trt.plugin.described[f"visionllm::{MSDA}"]
    assert names[0] == "value"
    output = describe(*inputs(DYNAMIC, dtype))
    assert [size.value for size in output.shape_expr] == ["n", "q", 8, 32]
    assert output.dtype is dtype


def test_half_precision_locations_are_refused(trt: QuickTensorRT) -> None:
    describe, _ = trt.plugin.described[f"visionllm::{MSDA}"]
    tensors = inputs(DYNAMIC, F16)
    tensors[3].dtype = F16
    with pytest.raises(ValueError, match="no supported combination of input types"):
        describe(*tensors)


def test_fixed_sizes_give_the_operators_own_launch(trt: QuickTensorRT) -> None:
    choose = trt.plugin.kernels[f"visionllm::{MSDA}"]
    kernel, image, params, scalars = choose(*inputs(FIXED, F16), (), 0)
    plan = launch(FIXED, "float16")
    assert (kernel, image) == (plan.kernel, "ptx")
    told = {name: size.value for name, size in vars(params).items()}
    assert tuple(told[f"grid_{axis}"] for axis in "xyz") == plan.grid
    assert tuple(told[f"block_{axis}"] for axis in "xyz") == plan.block
    assert told["shared_mem"] == plan.shared_bytes
    assert tuple(scalar.value for scalar in scalars.items) == plan.scalars


def test_unknown_sizes_become_expressions(trt: QuickTensorRT) -> None:
    choose = trt.plugin.kernels[f"visionllm::{MSDA}"]
    kernel, _, params, scalars = choose(*inputs(DYNAMIC, F32), (), 0)
    assert kernel == "msda_f32_vec"
    assert [vars(params)[f"grid_{axis}"].value for axis in "xyz"] == ["ceil(q/16)", 8, "n"]
    assert [scalar.value for scalar in scalars.items] == ["n", "s", 8, 32, 4, "q", 4]


PTX = """.visible .entry first(
\t.param .u64 first_param_0,
\t.param .u64 first_param_1,
\t.param .u32 first_param_2
)
.maxntid 128, 1, 1
{ ld.param.u64 %rd1, [first_param_1]; call (%f), other(%f); }
.visible .entry second(
\t.param .u64 .ptr .global .align 4 p0,
\t.param .u64 .ptr .global .align 4 p1,
\t.param .u32 p2
)
"""


def parameters(ptx: str) -> dict[str, list[str]]:
    entries = re.findall(r"\.entry\s+(\w+)\s*\(([^()]*)\)", ptx)
    return {name: re.findall(r"(\w+)\s*(?:,|$)", text.strip()) for name, text in entries}


def test_outputs_move_behind_the_scalars() -> None:
    moved = move_outputs_last(PTX, inputs=1, outputs=1)
    assert parameters(moved) == {
        "first": ["first_param_0", "first_param_2", "first_param_1"],
        "second": ["p0", "p2", "p1"],
    }
    assert "{ ld.param.u64 %rd1, [first_param_1]; call (%f), other(%f); }" in moved
    assert ".param .u64 .ptr .global .align 4 p1\n)" in moved


def test_ptx_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="got none"):
        move_outputs_last(".func nothing", inputs=1, outputs=1)
    with pytest.raises(ValueError, match=r"expected at least 4 parameters, .* with 3"):
        move_outputs_last(PTX, inputs=3, outputs=1)


@pytest.mark.skipif(not available_methods(), reason="no CUDA compiler: neither NVRTC nor nvcc")
@pytest.mark.parametrize("op", [POOL, MSDA])
def test_every_kernel_has_tensorrts_order(op: str) -> None:
    counts = {MSDA: (5, 7), POOL: (3, 7)}
    pointers, scalars = counts[op]
    found = parameters(aot_ptx(op, 87))
    assert {"msda_f16_vec", "msda_bf16_any", "pool_f32_sampled"} & set(found)
    for name, order in found.items():
        numbers = [int(text.rpartition("_")[2]) for text in order]
        every = range(pointers + 1 + scalars)
        assert numbers == [*(i for i in every if i != pointers), pointers], name


@pytest.mark.skipif(
    shutil.which("nvcc") is None or shutil.which("ptxas") is None, reason="no nvcc or no ptxas"
)
def test_the_assembler_takes_the_reordered_ptx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ptxas must be as new as the compiler that wrote the PTX: take nvcc's for both.
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    source, target = tmp_path / "kernels.ptx", tmp_path / "kernels.cubin"
    source.write_text(aot_ptx(POOL, 87), encoding="utf-8")
    command = ["ptxas", "-arch=sm_87", "-O0", "-o", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"pool_f16_fold_vec" in target.read_bytes()
