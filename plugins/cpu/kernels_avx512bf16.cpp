// Full attention with products of bfloat16; of all else the set has what avx512vnni has.

#if defined(__x86_64__)
#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")
#include <immintrin.h>
// GCC's own intrinsics start from a value that they say is undefined, and it then warns of it.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define VISIONLLM_F16C 1
#define VISIONLLM_LANES 16

#include <stddef.h>
#include <stdint.h>

namespace visionllm::cpu {
namespace {
#include "vectors.h"
}  // namespace
}  // namespace visionllm::cpu

#include "../unmasked_attention/cpu_kernel.h"
#include "../unmasked_attention/cpu_bf16.h"

namespace visionllm::cpu {
extern const UnmaskedAttentionAttend kUnmaskedAttentionInBFloat16;
const UnmaskedAttentionAttend kUnmaskedAttentionInBFloat16 =
    attention::unmasked_attention_attend<attention::InBFloat16>;
}  // namespace visionllm::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
