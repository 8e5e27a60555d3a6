// The kernels in AVX-512: 16 floats a vector.

#if defined(__x86_64__)
#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include <immintrin.h>
#endif

#define VISIONLLM_F16C 1
#define VISIONLLM_LANES 16
#define VISIONLLM_TABLE kAvx512Kernels
#define VISIONLLM_NAME "avx512"
#include "kernels_body.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
