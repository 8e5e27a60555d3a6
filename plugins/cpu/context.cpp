// The calls into ONNX Runtime that every operator makes, each with its status checked.

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "operator.h"

namespace visionllm::cpu {
namespace {

ort::Status* read_info(const ort::Api* api, const ort::TensorInfo* info, size_t rank, Tensor* out) {
    int element = 0;
    VISIONLLM_TRY(ort::get_element_type(api, info, &element));
    out->element = static_cast<ort::ElementType>(element);
    VISIONLLM_TRY(ort::get_rank(api, info, &out->rank));
    return out->rank == rank ? ort::get_shape(api, info, out->shape, rank) : nullptr;
}

struct Room {
    void* data = nullptr;
    size_t bytes = 0;
    ~Room() { free(data); }
};

}  // namespace

void* thread_room(int slot, size_t bytes) {
    static thread_local Room rooms[2];
    Room& room = rooms[slot];
    if (room.data == nullptr || room.bytes < bytes) {
        free(room.data);
        room.bytes = (bytes / 4096 + 1) * 4096;
        room.data = aligned_alloc(64, room.bytes);
    }
    return room.data;
}

ort::Status* Context::input(size_t index, const char* name, size_t rank, Tensor* out) const {
    const ort::Value* value = nullptr;
    VISIONLLM_TRY(ort::get_input(api_, context_, index, &value));
    if (value == nullptr) return invalid("input '%s' is missing", name);
    ort::TensorInfo* info = nullptr;
    VISIONLLM_TRY(ort::get_tensor_info(api_, value, &info));
    ort::Status* status = read_info(api_, info, rank, out);
    ort::release_tensor_info(api_, info);
    if (status != nullptr) return status;
    if (out->rank != rank) {
        return invalid("input '%s' expected %zu axes, got %zu", name, rank, out->rank);
    }
    return ort::get_tensor_data(api_, const_cast<ort::Value*>(value), &out->data);
}

ort::Status* Context::output(size_t index, const int64_t* shape, size_t rank, void** data) {
    ort::Value* value = nullptr;
    VISIONLLM_TRY(ort::get_output(api_, context_, index, shape, rank, &value));
    if (value == nullptr) return invalid("output %zu is missing", index);
    return ort::get_tensor_data(api_, value, data);
}

ort::Status* Context::invalid(const char* format, ...) const {
    char text[512];
    const int prefix = snprintf(text, sizeof text, "%s: ", op_);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + prefix, sizeof text - static_cast<size_t>(prefix), format, arguments);
    va_end(arguments);
    return ort::create_status(api_, ort::kInvalidArgument, text);
}

int element_index(ort::ElementType element) {
    switch (element) {
        case ort::kFloat16: return kIndexFloat16;
        case ort::kBFloat16: return kIndexBFloat16;
        default: return kIndexFloat32;
    }
}

}  // namespace visionllm::cpu
