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
    "ms_deform_attn/cpu_op.cpp",
    "grid_sample_prompt_pool/cpu_op.cpp",
)
HEADERS = (
    "cpu/kernels.h",
    "cpu/kernels_body.h",
    "cpu/operator.h",
    "cpu/ort_abi.h",
    "cpu/vectors.h",
    "ms_deform_attn/cpu_kernel.h",
    "grid_sample_prompt_pool/cpu_kernel.h",
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
