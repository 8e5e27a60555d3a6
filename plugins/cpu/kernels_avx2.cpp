// The kernels in AVX2 with FMA: 8 floats a vector.

#if defined(__x86_64__)
#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>
#endif

#define VISIONLLM_F16C 1
#define VISIONLLM_LANES 8
#define VISIONLLM_TABLE kAvx2Kernels
#define VISIONLLM_NAME "avx2"
#include "kernels_body.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
