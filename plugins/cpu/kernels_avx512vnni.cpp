// The kernels in AVX-512 with products of bytes (VNNI): 16 floats or 64 bytes a vector.

#if defined(__x86_64__)
#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#include <immintrin.h>
// GCC's own intrinsics start from a value that they say is undefined, and it then warns of it.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define VISIONLLM_F16C 1
#define VISIONLLM_VNNI 1
#define VISIONLLM_LANES 16
#define VISIONLLM_TABLE kAvx512VnniKernels
#define VISIONLLM_NAME "avx512vnni"
#include "kernels_body.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
