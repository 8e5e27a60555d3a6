// The entry point that ONNX Runtime calls, and the table of operators. A new operator is one line
// in kOperators, its compute function, and its kernel in kernels.h.

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <exception>
#include <mutex>
#include <new>

#include "operator.h"

#define VISIONLLM_EXPORT extern "C" __attribute__((visibility("default")))

namespace visionllm::cpu {
namespace {

constexpr const char* kDomain = "visionllm";
const Operator* const kOperators[] = {
    &kCachedAttention, &kGatedSilu, &kGatherRows, &kMsDeformAttn, &kGridSamplePromptPool,
    &kQuantizedCachedAttention, &kQuantizedDense, &kQuantizedLinear, &kRowNormalization,
    &kUnmaskedAttention,
};
constexpr size_t kMaxRegistrations = kMaxCombinations * sizeof kOperators / sizeof *kOperators;

// One type combination of one operator, as ONNX Runtime sees it.
struct Registration : ort::CustomOp {
    const Operator* op;
    const ort::ElementType* types;
};

// One node of a loaded session.
struct Node {
    const Operator* op;
    const ort::Api* api;
    const Kernels* kernels;
    AttributeValue attributes[kMaxAttributes];
};

const Registration& self(const ort::CustomOp* op) { return *static_cast<const Registration*>(op); }

ort::Status* read_attributes(const ort::Api* api, const ort::KernelInfo* info, Node* node) {
    for (size_t i = 0; i < node->op->attribute_count; ++i) {
        const Attribute& attribute = node->op->attributes[i];
        AttributeValue& value = node->attributes[i];
        VISIONLLM_TRY(attribute.kind == Attribute::kInt
                ? ort::get_int_attribute(api, info, attribute.name, &value.whole)
                : ort::get_float_attribute(api, info, attribute.name, &value.real));
    }
    return nullptr;
}

ort::Status* create_node(
    const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info, void** out) {
    const char* wanted = nullptr;
    const Kernels* kernels = choose_kernels(&wanted);
    // Registration refused already; the variable can only have changed since.
    if (kernels == nullptr) {
        return ort::create_status(api, ort::kFail, "VISIONLLM_EDGE_CPU_ISA changed while loading");
    }
    Node* node = new (std::nothrow) Node{self(op).op, api, kernels, {}};
    if (node == nullptr) return ort::create_status(api, ort::kFail, "out of memory");
    if (ort::Status* status = read_attributes(api, info, node)) {
        delete node;
        return status;
    }
    *out = node;
    return nullptr;
}

ort::Status* compute(void* state, ort::KernelContext* ort_context) {
    const Node& node = *static_cast<const Node*>(state);
    try {
        Context context(
            node.api, ort_context, *node.kernels, node.op->name, node.attributes);
        return node.op->compute(context);
    } catch (const std::exception& e) {
        return ort::create_status(node.api, ort::kFail, e.what());
    }
}

int zero(const ort::CustomOp*, size_t) { return 0; }  // required; in the provider's own memory
int one(const ort::CustomOp*) { return 1; }

Registration describe(const Operator& op, const ort::ElementType* types) {
    Registration out{};
    out.version = ort::kApiVersion;
    out.op = &op;
    out.types = types;
    out.get_name = [](const ort::CustomOp* o) { return self(o).op->name; };
    out.get_execution_provider = [](const ort::CustomOp*) -> const char* { return nullptr; };
    out.get_input_type = [](const ort::CustomOp* o, size_t i) { return self(o).types[i]; };
    out.get_input_count = [](const ort::CustomOp* o) { return self(o).op->inputs; };
    out.get_output_type = [](const ort::CustomOp* o, size_t i) {
        return self(o).types[self(o).op->inputs + i];
    };
    out.get_output_count = [](const ort::CustomOp* o) { return self(o).op->outputs; };
    out.destroy_kernel = [](void* state) { delete static_cast<Node*>(state); };
    out.get_input_characteristic = zero;
    out.get_output_characteristic = zero;
    out.get_input_memory_type = zero;
    out.get_variadic_input_min_arity = one;
    out.get_variadic_input_homogeneity = one;
    out.get_variadic_output_min_arity = one;
    out.get_variadic_output_homogeneity = one;
    out.create_kernel_v2 = create_node;
    out.compute_v2 = compute;
    out.get_start_version = one;
    out.get_end_version = [](const ort::CustomOp*) { return INT_MAX; };
    return out;
}

// The domain lives as long as the process: sessions keep pointers into it.
ort::Status* make_domain(const ort::Api* api, ort::CustomOpDomain** out) {
    static Registration registrations[kMaxRegistrations];
    static std::mutex mutex;
    static ort::CustomOpDomain* domain = nullptr;
    const std::lock_guard<std::mutex> lock(mutex);
    if (domain == nullptr) {
        ort::CustomOpDomain* fresh = nullptr;
        VISIONLLM_TRY(ort::create_custom_op_domain(api, kDomain, &fresh));
        Registration* next = registrations;
        for (const Operator* op : kOperators) {
            for (size_t i = 0; i < op->combinations; ++i, ++next) {
                *next = describe(*op, op->types[i]);
                if (ort::Status* status = ort::custom_op_domain_add(api, fresh, next)) {
                    ort::release_custom_op_domain(api, fresh);
                    return status;
                }
            }
        }
        domain = fresh;
    }
    *out = domain;
    return nullptr;
}

bool supported(const char* set) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (strcmp(set, "avx2") == 0) return avx2;  // every processor with AVX2 converts halves
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    if (strcmp(set, "avx512") == 0) return avx512;
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    if (strcmp(set, "avx512vnni") == 0) return vnni;
    if (strcmp(set, "avx512bf16") == 0) return vnni && __builtin_cpu_supports("avx512bf16");
#endif
    return strcmp(set, "portable") == 0;
}

#if defined(__x86_64__)
Kernels with_bfloat16(Kernels kernels) {
    kernels.name = "avx512bf16";
    kernels.rounded_unmasked_attention = kUnmaskedAttentionInBFloat16;
    return kernels;
}
#endif

}  // namespace

const Kernels* choose_kernels(const char** wanted) {
#if defined(__x86_64__)
    static const Kernels avx512bf16 = with_bfloat16(kAvx512VnniKernels);
#endif
    const Kernels* const sets[] = {
#if defined(__x86_64__)
        &avx512bf16, &kAvx512VnniKernels, &kAvx512Kernels, &kAvx2Kernels,
#endif
        &kPortableKernels};
    const char* name = getenv("VISIONLLM_EDGE_CPU_ISA");
    *wanted = name != nullptr ? name : "";
    for (const Kernels* set : sets) {
        const bool asked = **wanted == '\0' || strcmp(*wanted, set->name) == 0;
        if (asked && supported(set->name)) return set;
    }
    return nullptr;
}

}  // namespace visionllm::cpu

// The name of the instruction set in use; "" if the one asked for cannot be had.
VISIONLLM_EXPORT const char* visionllm_edge_cpu_isa() {
    const char* wanted = nullptr;
    const visionllm::cpu::Kernels* kernels = visionllm::cpu::choose_kernels(&wanted);
    return kernels != nullptr ? kernels->name : "";
}

VISIONLLM_EXPORT visionllm::ort::Status* RegisterCustomOps(
    visionllm::ort::SessionOptions* options, const visionllm::ort::ApiBase* base) {
    using namespace visionllm;
    char text[256];
    const ort::Api* api = base->get_api(ort::kApiVersion);
    if (api == nullptr) {
        // The first version has create_status, which is all that a refusal needs.
        const ort::Api* oldest = base->get_api(1);
        if (oldest == nullptr) return nullptr;
        snprintf(text, sizeof text,
            "visionllm-edge CPU kernels: expected ONNX Runtime 1.%u or newer, got %s. Update "
            "onnxruntime, or set VISIONLLM_EDGE_CPU_KERNELS=0 to run without the kernels.",
            ort::kApiVersion, base->get_version_string());
        return ort::create_status(oldest, ort::kFail, text);
    }
    const char* wanted = nullptr;
    if (cpu::choose_kernels(&wanted) == nullptr) {
        snprintf(text, sizeof text,
            "visionllm-edge CPU kernels: VISIONLLM_EDGE_CPU_ISA expected avx512bf16, avx512vnni, "
            "avx512, avx2 or portable, as far as this processor has them, got '%s'.", wanted);
        return ort::create_status(api, ort::kInvalidArgument, text);
    }
    ort::CustomOpDomain* domain = nullptr;
    VISIONLLM_TRY(cpu::make_domain(api, &domain));
    return ort::add_custom_op_domain(api, options, domain);
}
