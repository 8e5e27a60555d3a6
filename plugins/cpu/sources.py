"""What the CPU library is made of: read by ``setup.py`` and by ``build.py``, imports nothing."""

from __future__ import annotations

__all__ = ["FLAGS", "HEADERS", "LIBRARY_STEM", "SOURCES"]

LIBRARY_STEM = "_kernels"

# Relative to the plugins folder.
SOURCES = (
    "cpu/library.cpp",
    "cpu/context.cpp",
    "cpu/kernels_portable.cpp",
    "cpu/kernels_avx2.cpp",
    "cpu/kernels_avx512.cpp",
    "cpu/kernels_avx512vnni.cpp",
    "cpu/kernels_avx512bf16.cpp",
    "cached_attention/cpu_op.cpp",
    "gated_silu/cpu_op.cpp",
    "gather_rows/cpu_op.cpp",
    "ms_deform_attn/cpu_op.cpp",
    "grid_sample_prompt_pool/cpu_op.cpp",
    "quantized_linear/cpu_op.cpp",
    "row_normalization/cpu_op.cpp",
    "unmasked_attention/cpu_op.cpp",
)
HEADERS = (
    "cpu/kernels.h",
    "cpu/kernels_body.h",
    "cpu/operator.h",
    "cpu/ort_abi.h",
    "cpu/tile.h",
    "cpu/vectors.h",
    "cached_attention/cpu_kernel.h",
    "cached_attention/cpu_tile.h",
    "gated_silu/cpu_kernel.h",
    "ms_deform_attn/cpu_kernel.h",
    "grid_sample_prompt_pool/cpu_kernel.h",
    "quantized_linear/cpu_avx2.h",
    "quantized_linear/cpu_exact.h",
    "quantized_linear/cpu_finish.h",
    "quantized_linear/cpu_kernel.h",
    "quantized_linear/cpu_portable.h",
    "quantized_linear/cpu_vnni.h",
    "quantized_linear/cpu_vnni_matrix.h",
    "quantized_linear/cpu_vnni_vector.h",
    "row_normalization/cpu_kernel.h",
    "unmasked_attention/cpu_bf16.h",
    "unmasked_attention/cpu_kernel.h",
)
# No -march: each kernels_<set>.cpp asks for its instruction set itself, so that the library starts
# on any processor of the architecture. -Wno-psabi: vectors are only passed to inlined functions.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-g0",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
)
