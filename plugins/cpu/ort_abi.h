// The part of ONNX Runtime's C interface that a custom operator needs, written down by position.
//
// The interface is a table of function pointers that only ever grows at its end, so a slot number
// is a stable name, and a library that fills in one struct and calls a few slots needs none of
// ONNX Runtime's headers. The numbers were read with offsetof from a public copy of
// onnxruntime_c_api.h (API version 29); a slot's first version stands in that header too.
// kApiVersion is the highest first version of anything used here: KernelContext_ParallelFor, 17.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace visionllm::ort {

constexpr uint32_t kApiVersion = 17;  // ONNX Runtime 1.17

struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelContext;
struct KernelInfo;
struct TensorInfo;
struct Value;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int {
    kUndefined = 0,
    kFloat32 = 1,
    kUInt8 = 2,
    kInt8 = 3,
    kInt32 = 6,
    kInt64 = 7,
    kFloat16 = 10,
    kBFloat16 = 16
};

struct Api {
    const void* slot[275];
};

struct ApiBase {
    const Api* (*get_api)(uint32_t version) noexcept;
    const char* (*get_version_string)() noexcept;
};

// What ONNX Runtime calls OrtCustomOp, up to the version that kApiVersion names. Every function is
// filled in, also the ones for variadic ports, which we do not have: ONNX Runtime calls without
// looking for null.
struct CustomOp {
    uint32_t version;
    void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
    const char* (*get_name)(const CustomOp*);
    const char* (*get_execution_provider)(const CustomOp*);
    ElementType (*get_input_type)(const CustomOp*, size_t);
    size_t (*get_input_count)(const CustomOp*);
    ElementType (*get_output_type)(const CustomOp*, size_t);
    size_t (*get_output_count)(const CustomOp*);
    void (*compute)(void*, KernelContext*);
    void (*destroy_kernel)(void*);
    int (*get_input_characteristic)(const CustomOp*, size_t);
    int (*get_output_characteristic)(const CustomOp*, size_t);
    int (*get_input_memory_type)(const CustomOp*, size_t);
    int (*get_variadic_input_min_arity)(const CustomOp*);
    int (*get_variadic_input_homogeneity)(const CustomOp*);
    int (*get_variadic_output_min_arity)(const CustomOp*);
    int (*get_variadic_output_homogeneity)(const CustomOp*);
    Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void**);
    Status* (*compute_v2)(void*, KernelContext*);
    Status* (*infer_output_shape)(const CustomOp*, void*);
    int (*get_start_version)(const CustomOp*);
    int (*get_end_version)(const CustomOp*);
};
static_assert(sizeof(CustomOp) == 22 * sizeof(void*), "the layout is ONNX Runtime's");

// One typed call per slot.
template <size_t Slot, class Result, class... Arguments>
inline Result call(const Api* api, Arguments... arguments) {
    using Function = Result (*)(Arguments...);
    return reinterpret_cast<Function>(const_cast<void*>(api->slot[Slot]))(arguments...);
}

inline Status* create_status(const Api* api, ErrorCode code, const char* message) {
    return call<0, Status*>(api, static_cast<int>(code), message);
}
inline Status* create_custom_op_domain(const Api* api, const char* name, CustomOpDomain** out) {
    return call<26, Status*>(api, name, out);
}
inline Status* custom_op_domain_add(const Api* api, CustomOpDomain* domain, const CustomOp* op) {
    return call<27, Status*>(api, domain, op);
}
inline Status* add_custom_op_domain(
    const Api* api, SessionOptions* options, CustomOpDomain* domain) {
    return call<28, Status*>(api, options, domain);
}
inline Status* get_tensor_data(const Api* api, Value* value, void** out) {
    return call<51, Status*>(api, value, out);
}
inline Status* get_element_type(const Api* api, const TensorInfo* info, int* out) {
    return call<60, Status*>(api, info, out);
}
inline Status* get_rank(const Api* api, const TensorInfo* info, size_t* out) {
    return call<61, Status*>(api, info, out);
}
inline Status* get_shape(const Api* api, const TensorInfo* info, int64_t* out, size_t rank) {
    return call<62, Status*>(api, info, out, rank);
}
inline Status* get_tensor_info(const Api* api, const Value* value, TensorInfo** out) {
    return call<65, Status*>(api, value, out);
}
inline Status* get_float_attribute(
    const Api* api, const KernelInfo* info, const char* name, float* out) {
    return call<85, Status*>(api, info, name, out);
}
inline Status* get_int_attribute(
    const Api* api, const KernelInfo* info, const char* name, int64_t* out) {
    return call<86, Status*>(api, info, name, out);
}
inline Status* get_input(
    const Api* api, const KernelContext* context, size_t index, const Value** out) {
    return call<90, Status*>(api, context, index, out);
}
inline Status* get_output(const Api* api, KernelContext* context, size_t index,
    const int64_t* shape, size_t rank, Value** out) {
    return call<91, Status*>(api, context, index, shape, rank, out);
}
inline void release_status(const Api* api, Status* status) { call<93, void>(api, status); }
inline void release_tensor_info(const Api* api, TensorInfo* info) { call<99, void>(api, info); }
inline void release_custom_op_domain(const Api* api, CustomOpDomain* domain) {
    call<101, void>(api, domain);
}
// Runs body(user, i) for i in 0..total-1 on the session's own threads; batches 0 leaves it open how
// the range is divided.
inline Status* parallel_for(const Api* api, const KernelContext* context,
    void (*body)(void*, size_t), size_t total, size_t batches, void* user) {
    return call<274, Status*>(api, context, body, total, batches, user);
}

}  // namespace visionllm::ort
