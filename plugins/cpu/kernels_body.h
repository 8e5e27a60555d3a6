// Body of one kernels_<set>.cpp: sets VISIONLLM_LANES, VISIONLLM_TABLE and VISIONLLM_NAME first.
// All code lands in an unnamed namespace: two sets must not share a function by name.

#include <stddef.h>
#include <stdint.h>

namespace visionllm::cpu {
namespace {
#include "vectors.h"
}  // namespace
}  // namespace visionllm::cpu

#include "kernels.h"

namespace visionllm::cpu {
const Kernels VISIONLLM_TABLE = {
    VISIONLLM_NAME,
    {attention::kKernels<Float32, Float32>, attention::kKernels<Float16, Float16>,
        attention::kKernels<BFloat16, BFloat16>, attention::kKernels<Float32, Float16>,
        attention::kKernels<Float32, Int8>},
    {gated_silu_row<Float32>, gated_silu_row<Float16>, gated_silu_row<BFloat16>},
    {ms_deform_attn_task<Float32>, ms_deform_attn_task<Float16>, ms_deform_attn_task<BFloat16>},
    prompt_pool_fold,
    {prompt_pool_sum<Float32>, prompt_pool_sum<Float16>, prompt_pool_sum<BFloat16>},
    kQuantizedLinearKernels,
    normalize_row,
    attention::unmasked_attention_attend<attention::Unrounded>,
    attention::unmasked_attention_attend<attention::Unrounded>,
};
}  // namespace visionllm::cpu
