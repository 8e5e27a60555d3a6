// The kernels of every operator for one instruction set, and the choice between the sets.
#pragma once

#include "../grid_sample_prompt_pool/cpu_kernel.h"
#include "../ms_deform_attn/cpu_kernel.h"

namespace visionllm::cpu {

// Order of the element types in every table below, and of type combinations in spec.py.
enum ElementIndex : int { kIndexFloat32 = 0, kIndexFloat16 = 1, kIndexBFloat16 = 2 };

struct Kernels {
    const char* name;
    MsDeformAttnTask ms_deform_attn[3];
    PromptPoolFold prompt_pool_fold;
    PromptPoolSum prompt_pool_sum[3];
};

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

// The widest set that this processor has. VISIONLLM_EDGE_CPU_ISA=avx512|avx2|portable asks for one.
// Null if the one asked for is unknown or missing here; `wanted` then holds its name.
const Kernels* choose_kernels(const char** wanted);

}  // namespace visionllm::cpu
