"""Every kernel compiles for every GPU generation, within its register budget and without spills."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from visionllm_edge.plugins.cuda import compile as compile_module
from visionllm_edge.plugins.cuda.budget import REGISTER_CEILINGS, over_budget
from visionllm_edge.plugins.cuda.compile import (
    KERNEL_OPS,
    SMS,
    CompiledKernels,
    KernelResources,
    available_methods,
    compile_kernels,
    parse_resources,
)

ENTRY_POINTS = {
    "MultiScaleDeformableAttention": ("msda", ("vec", "any", "naive")),
    "GridSamplePromptPool": ("pool", ("fold_vec", "fold_any", "sampled", "naive")),
}
METHODS = available_methods()
needs_compiler = pytest.mark.skipif(
    not METHODS, reason="needs a CUDA compiler: NVRTC (extra 'cuda') or nvcc"
)


@pytest.fixture(scope="session")
def compiled() -> dict[tuple[str, int], CompiledKernels]:
    jobs = [(op, sm) for op in KERNEL_OPS for sm in SMS]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(jobs, pool.map(lambda job: compile_kernels(*job), jobs), strict=True))


@needs_compiler
@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("op", ENTRY_POINTS)
def test_every_kernel_compiles_within_its_budget(
    op: str, sm: int, compiled: dict[tuple[str, int], CompiledKernels]
) -> None:
    result = compiled[op, sm]
    short, forms = ENTRY_POINTS[op]
    expected = {f"{short}_{code}_{form}" for code in ("f32", "f16", "bf16") for form in forms}
    assert set(result.resources) == expected
    assert result.cubin.startswith(b"\x7fELF")
    assert all(name.encode() in result.cubin for name in expected)
    # The assembler's numbers are those of the toolkits named in budget.py.
    if result.compiler in ("nvrtc 13.5", "nvcc 13.0.88"):
        assert over_budget(result.resources) == []


@needs_compiler
def test_operators_with_kernels() -> None:
    assert set(KERNEL_OPS) == set(ENTRY_POINTS)


@pytest.mark.skipif("nvcc" not in METHODS, reason="needs nvcc")
@pytest.mark.parametrize("op", ENTRY_POINTS)
def test_nvcc_compiles_the_same_entry_points(
    op: str, compiled: dict[tuple[str, int], CompiledKernels]
) -> None:
    result = compile_kernels(op, "sm_87", method="nvcc")
    assert result.compiler.startswith("nvcc 1")
    assert set(result.resources) == set(compiled[op, 87].resources)
    if result.compiler == "nvcc 13.0.88":
        assert over_budget(result.resources) == []


LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'msda_f16_vec' for 'sm_90'
ptxas info    : Function properties for msda_f16_vec
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 90 registers, used 1 barriers, 16896 bytes smem, 428 bytes cmem[0]
ptxas info    : Compiling entry function 'new_f32_form' for 'sm_90'
ptxas info    : Function properties for new_f32_form
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers
"""


def test_a_spill_and_a_register_too_many_are_seen() -> None:
    resources = parse_resources(LOG)
    assert resources == {
        "msda_f16_vec": KernelResources(90, 12, 8, 16896),
        "new_f32_form": KernelResources(40, 0, 0, 0),
    }
    assert over_budget(resources) == [
        "msda_f16_vec: spills 12 bytes out, 8 bytes in",
        f"msda_f16_vec: 90 registers, expected at most {REGISTER_CEILINGS['msda_vec']}",
        "new_f32_form: no register ceiling recorded",
    ]


def test_a_log_without_numbers_is_refused() -> None:
    with pytest.raises(RuntimeError, match="'msda_f16_vec': registers and spills expected"):
        parse_resources(LOG.replace("Used 90 registers", "Used some registers"))


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(ValueError, match="compute capability expected one of 75, 80, 86"):
        compile_kernels("GridSamplePromptPool", 70)
    with pytest.raises(ValueError, match="operator 'CachedAttention': expected one of Grid"):
        compile_kernels("CachedAttention", 90)
    with pytest.raises(ValueError, match="method expected nvrtc or nvcc, got clang"):
        compile_kernels("GridSamplePromptPool", 90, method="clang")


@pytest.mark.parametrize("method", METHODS)
def test_the_compilers_words_reach_the_reader(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(compile_module._FOLDER, tmp_path / "cuda")
    source = tmp_path / "grid_sample_prompt_pool" / "kernel.cuh"
    source.parent.mkdir()
    source.write_text("#error not like this\n", encoding="utf-8")
    monkeypatch.setattr(compile_module, "_FOLDER", tmp_path / "cuda")
    with pytest.raises(RuntimeError, match=r"GridSamplePromptPool, sm_90: nv(?s:.)*not like this"):
        compile_module._compile.__wrapped__("GridSamplePromptPool", 90, method)


CALLER = """
#include "ms_deform_attn/launch.cuh"
#include "grid_sample_prompt_pool/launch.cuh"

extern "C" int try_msda(int dtype, long long pixels, long long queries) {
  static char memory[64];
  const void* inputs[5] = {memory, memory, memory, memory, memory};
  void* outputs[1] = {memory};
  return visionllm_msda_enqueue(dtype, inputs, outputs, 1, pixels, 8, 32, 4, queries, 4, nullptr);
}

extern "C" int try_pool(int dtype, long long regions, long long height) {
  static char memory[64];
  const void* inputs[3] = {memory, memory, memory};
  void* outputs[1] = {memory};
  return visionllm_pool_enqueue(dtype, inputs, outputs, 1, 24, 24, 64, regions, height, 336,
                                nullptr);
}
"""


@pytest.mark.skipif("nvcc" not in METHODS, reason="needs nvcc")
def test_a_cpp_host_can_call_both(tmp_path: Path) -> None:
    source, library = tmp_path / "caller.cu", tmp_path / "caller.so"
    source.write_text(CALLER, encoding="utf-8")
    command = ["nvcc", "-std=c++17", "-arch=sm_87", "-shared", "-Xcompiler", "-fPIC"]
    command += ["-I", str(compile_module._FOLDER.parent), "-o", str(library), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    caller = ctypes.CDLL(str(library))
    wide = ctypes.c_longlong
    # Nothing to launch is success, also without a device.
    assert caller.try_msda(1, wide(64), wide(0)) == 0
    assert caller.try_pool(2, wide(0), wide(336)) == 0
    # cudaErrorInvalidValue: an unknown type, a size the kernel cannot count.
    assert caller.try_msda(3, wide(64), wide(5)) == 1
    assert caller.try_msda(0, wide(2**30), wide(5)) == 1
    assert caller.try_pool(0, wide(4), wide(20000)) == 1
