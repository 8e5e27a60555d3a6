// Block-quantised linear layer on a CPU: what a call is, and the kernels that each set must bring.
//
// Weights are read where they lie, in the layout of spec.py; there is no second copy of them. Two
// ways to multiply: `exact` with float32 activations (accuracy level 1) and `rounded` with int8
// activations, one scale per row and block (level 4). For the second, `round` writes the numbers
// first, once for all outputs; how they lie in memory is between the kernels of one set.
//
// Knows nothing of ONNX Runtime and nothing of threads.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace visionllm::cpu {

// What QuantizedDense does with a sum after its bias; the values of its attribute.
enum class Activation : int64_t { kNone = 0, kGelu = 1, kQuickGelu = 2, kRelu = 3 };

// Sizes and pointers of one call. Letters as in spec.py; rows are B * S.
struct QuantizedLinear {
    const float* x;          // [rows, K]
    const uint8_t* weight;   // [N, K/G, G*bits/8]
    const uint16_t* scales;  // [N, K/G], float16
    float* y;                // [rows, N]
    const float* bias;       // [N], or null: then there is no activation either
    Activation activation;
    int64_t rows, inputs, outputs, block;
    int bits;
    void* room;  // the rounded activations, room_bytes(call)
};

// How the outputs of a call are cut into tasks, and the room that one task needs for itself.
struct QuantizedLinearTasks {
    int64_t outputs;
    size_t room_bytes;
};

struct QuantizedLinearKernels {
    size_t (*room_bytes)(const QuantizedLinear& call);
    // Rounds rows from .. to - 1 into call.room.
    void (*round)(const QuantizedLinear& call, int64_t from, int64_t to);
    QuantizedLinearTasks (*rounded_tasks)(const QuantizedLinear& call);
    // Writes outputs from .. to - 1 of every row; `from` is a multiple of the tasks' size.
    void (*rounded)(const QuantizedLinear& call, int64_t from, int64_t to, void* room);
    QuantizedLinearTasks (*exact_tasks)(const QuantizedLinear& call);
    void (*exact)(const QuantizedLinear& call, int64_t from, int64_t to, void* room);
    // Bias and activation on outputs from .. to - 1; where `finishes` says so, `rounded` does it.
    void (*finish)(const QuantizedLinear& call, int64_t from, int64_t to);
    bool (*finishes)(const QuantizedLinear& call);
};

}  // namespace visionllm::cpu

#ifdef VISIONLLM_LANES
namespace visionllm::cpu::quantized_linear {
namespace {

// Rounding of activations, the same in every set and in reference.py: numbers are x * (127 /
// largest) to the nearest, halves to even; their scale is largest / 127.
constexpr float kSmallest = 1e-30f;  // a block whose largest is below becomes zeros
constexpr float kOver127 = 1.0f / 127.0f;

}  // namespace
}  // namespace visionllm::cpu::quantized_linear

#include "cpu_exact.h"
#include "cpu_finish.h"
#if defined(VISIONLLM_VNNI)
#include "cpu_vnni.h"
#elif defined(VISIONLLM_F16C)
#include "cpu_avx2.h"
#else
#include "cpu_portable.h"
#endif

namespace visionllm::cpu {
namespace {

constexpr QuantizedLinearKernels kQuantizedLinearKernels = {
#if defined(VISIONLLM_VNNI)
    quantized_linear::vnni_room_bytes, quantized_linear::vnni_round_rows,
    quantized_linear::vnni_rounded_tasks, quantized_linear::vnni_rounded_task,
#elif defined(VISIONLLM_F16C)
    quantized_linear::avx2_room_bytes, quantized_linear::avx2_round_rows,
    quantized_linear::avx2_rounded_tasks, quantized_linear::avx2_rounded_task,
#else
    quantized_linear::portable_room_bytes, quantized_linear::portable_round_rows,
    quantized_linear::portable_rounded_tasks, quantized_linear::portable_rounded_task,
#endif
    quantized_linear::exact_tasks, quantized_linear::exact_task, quantized_linear::finish_outputs,
#if defined(VISIONLLM_VNNI)
    quantized_linear::vnni_finishes};
#else
    [](const QuantizedLinear&) { return false; }};
#endif

}  // namespace
}  // namespace visionllm::cpu
#endif
