// What an operator is to the library, and what its compute function gets to see of ONNX Runtime.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "ort_abi.h"

namespace visionllm::cpu {

constexpr size_t kMaxRank = 8;
constexpr size_t kMaxPorts = 16;
constexpr size_t kMaxCombinations = 6;
constexpr size_t kMaxAttributes = 8;

struct Tensor {
    void* data;
    ort::ElementType element;
    size_t rank;
    int64_t shape[kMaxRank];
};

// An attribute of an operator; all are required.
struct Attribute {
    const char* name;
    enum Kind { kInt, kFloat } kind;
};

union AttributeValue {
    int64_t whole;
    float real;
};

// Room that the calling thread keeps from call to call, at a 64-byte boundary, or null if there is
// no more memory. Slot 0 is for a compute function and lasts until it returns; slot 1 is for one
// task inside `parallel` (the thread that computes runs tasks too).
void* thread_room(int slot, size_t bytes);

// One call of a node. Every function that returns a Status returns null when all is well; a status
// that is not null belongs to the caller, who hands it on to ONNX Runtime.
class Context {
public:
    Context(const ort::Api* api, ort::KernelContext* context, const Kernels& kernels,
        const char* op, const AttributeValue* attributes)
        : kernels(kernels), attributes(attributes), api_(api), context_(context), op_(op) {}

    // Input `index`, which must have `rank` axes; `name` is for the message.
    ort::Status* input(size_t index, const char* name, size_t rank, Tensor* out) const;
    ort::Status* output(size_t index, const int64_t* shape, size_t rank, void** data);
    // An error that says `<op>: <text>`, with printf's conversions.
    ort::Status* invalid(const char* format, ...) const __attribute__((format(printf, 2, 3)));

    // body(i) for i in 0 .. total - 1 on the session's threads; body must not throw.
    template <class Body>
    ort::Status* parallel(int64_t total, const Body& body) const {
        static_assert(std::is_nothrow_invocable_v<const Body&, int64_t>);
        if (total <= 0) return nullptr;
        const auto run = [](void* user, size_t i) {
            (*static_cast<const Body*>(user))(static_cast<int64_t>(i));
        };
        const size_t count = static_cast<size_t>(total);
        return ort::parallel_for(
            api_, context_, run, count, count, const_cast<void*>(static_cast<const void*>(&body)));
    }

    const Kernels& kernels;
    const AttributeValue* attributes;  // of the node, in the order of Operator::attributes

private:
    const ort::Api* api_;
    ort::KernelContext* context_;
    const char* op_;
};

#define VISIONLLM_TRY(expression) \
    if (::visionllm::ort::Status* status_ = (expression)) return status_

// The entry of one operator in the registration table (library.cpp).
struct Operator {
    const char* name;
    size_t inputs, outputs;
    // Element types of the inputs, then of the outputs; one row per type combination of spec.py.
    size_t combinations;
    ort::ElementType types[kMaxCombinations][kMaxPorts];
    ort::Status* (*compute)(Context& context);
    size_t attribute_count = 0;
    Attribute attributes[kMaxAttributes] = {};
};

// Position of a value type in the tables of Kernels.
int element_index(ort::ElementType element);

extern const Operator kCachedAttention;
extern const Operator kGatedSilu;
extern const Operator kGatherRows;
extern const Operator kMsDeformAttn;
extern const Operator kGridSamplePromptPool;
extern const Operator kQuantizedCachedAttention;
extern const Operator kQuantizedDense;
extern const Operator kQuantizedLinear;
extern const Operator kRowNormalization;
extern const Operator kUnmaskedAttention;

}  // namespace visionllm::cpu
