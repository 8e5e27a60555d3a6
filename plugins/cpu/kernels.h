// The kernels of every operator for one instruction set, and the choice between the sets.
#pragma once

#include "../cached_attention/cpu_kernel.h"
#include "../gated_silu/cpu_kernel.h"
#include "../grid_sample_prompt_pool/cpu_kernel.h"
#include "../ms_deform_attn/cpu_kernel.h"
#include "../quantized_linear/cpu_kernel.h"
#include "../row_normalization/cpu_kernel.h"
#include "../unmasked_attention/cpu_kernel.h"

namespace visionllm::cpu {

// Order of the element types in every table below, and of type combinations in spec.py.
enum ElementIndex : int { kIndexFloat32 = 0, kIndexFloat16 = 1, kIndexBFloat16 = 2 };

struct Kernels {
    const char* name;
    CachedAttentionKernels cached_attention[5];  // of the combinations in spec.py, then int8
    GatedSiluRow gated_silu[3];
    MsDeformAttnTask ms_deform_attn[3];
    PromptPoolFold prompt_pool_fold;
    PromptPoolSum prompt_pool_sum[3];
    QuantizedLinearKernels quantized_linear;
    NormalizeRow normalize_row;
    UnmaskedAttentionAttend unmasked_attention;
    UnmaskedAttentionAttend rounded_unmasked_attention;  // may round to bfloat16
};

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512VnniKernels;
// What the set avx512bf16 has in place of kAvx512VnniKernels.rounded_unmasked_attention.
extern const UnmaskedAttentionAttend kUnmaskedAttentionInBFloat16;
#endif

// The widest set that this processor has. VISIONLLM_EDGE_CPU_ISA asks for one by name. Null if the
// one asked for is unknown or missing here; `wanted` then holds its name.
const Kernels* choose_kernels(const char** wanted);

}  // namespace visionllm::cpu
