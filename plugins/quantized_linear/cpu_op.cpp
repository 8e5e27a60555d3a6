// Block-quantised linear layer, with and without bias and activation: reads the node, rounds the
// activations if it may, and cuts the outputs into tasks.

#include <atomic>

#include "../cpu/operator.h"

namespace visionllm::cpu {
namespace {

// Rows that one task rounds.
constexpr int64_t kRoundRows = 8;
// From so many rows on tasks are blocks of rows: a block is rounded where it is multiplied, and stays
// in the second-level cache. Below, tasks are blocks of outputs, so that each reads its own weights.
constexpr int64_t kRowBlocksFrom = 2048;
constexpr int64_t kBlockRows = 504;

long long text(int64_t x) { return static_cast<long long>(x); }

ort::Status* check_sizes(const Context& context, const QuantizedLinear& call, const Tensor& x,
    const Tensor& weight, const Tensor& scales) {
    if ((call.bits != 4 && call.bits != 8) || call.block < 16 || call.block > 256 ||
        (call.block & (call.block - 1)) != 0 || call.inputs < 1 || call.inputs % call.block != 0) {
        return context.invalid("expected bits 4 or 8 and a block_size of 16, 32, 64, 128 or 256 "
            "that divides K, got bits %d, block_size %lld, K %lld",
            call.bits, text(call.block), text(call.inputs));
    }
    if (x.shape[2] != call.inputs) {
        return context.invalid("input 'x': axis 2 expected %lld, got %lld", text(call.inputs),
            text(x.shape[2]));
    }
    const int64_t blocks = call.inputs / call.block, bytes = call.block * call.bits / 8;
    if (weight.shape[0] != call.outputs || weight.shape[1] != blocks || weight.shape[2] != bytes) {
        return context.invalid("input 'weight' expected [%lld, %lld, %lld], got [%lld, %lld, %lld]",
            text(call.outputs), text(blocks), text(bytes), text(weight.shape[0]),
            text(weight.shape[1]), text(weight.shape[2]));
    }
    if (scales.shape[0] != call.outputs || scales.shape[1] != blocks) {
        return context.invalid("input 'scales' expected [%lld, %lld], got [%lld, %lld]",
            text(call.outputs), text(blocks), text(scales.shape[0]), text(scales.shape[1]));
    }
    return nullptr;
}

typedef void (*Task)(const QuantizedLinear& call, int64_t from, int64_t to, void* room);

// `finished`: the task itself does what comes after the sums.
ort::Status* multiply(const Context& context, const QuantizedLinear& call,
    QuantizedLinearTasks tasks, Task task, bool finished) {
    std::atomic<bool> full{false};
    const auto finish = context.kernels.quantized_linear.finish;
    const int64_t count = (call.outputs + tasks.outputs - 1) / tasks.outputs;
    VISIONLLM_TRY(context.parallel(count, [&](int64_t i) noexcept {
        void* room = thread_room(1, tasks.room_bytes);
        if (room == nullptr) {
            full.store(true, std::memory_order_relaxed);
            return;
        }
        const int64_t from = i * tasks.outputs, end = from + tasks.outputs;
        const int64_t to = end < call.outputs ? end : call.outputs;
        task(call, from, to, room);
        if (call.bias != nullptr && !finished) finish(call, from, to);
    }));
    return full.load() ? context.invalid("out of memory") : nullptr;
}

size_t in_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

// All outputs of rows from .. to - 1, rounding included. False: no memory.
bool multiply_rows(
    const QuantizedLinearKernels& kernels, const QuantizedLinear& call, int64_t from, int64_t to) {
    QuantizedLinear part = call;
    part.x += from * call.inputs;
    part.y += from * call.outputs;
    part.rows = to - from;
    const QuantizedLinearTasks tasks = kernels.rounded_tasks(part);
    const size_t rounded = in_lines(kernels.room_bytes(part));
    char* room = static_cast<char*>(thread_room(1, rounded + tasks.room_bytes));
    if (room == nullptr) return false;
    part.room = room;
    kernels.round(part, 0, part.rows);
    for (int64_t first = 0; first < call.outputs; first += tasks.outputs) {
        const int64_t end = first + tasks.outputs;
        const int64_t last = end < call.outputs ? end : call.outputs;
        kernels.rounded(part, first, last, room + rounded);
        if (part.bias != nullptr && !kernels.finishes(part)) kernels.finish(part, first, last);
    }
    return true;
}

ort::Status* multiply_in_row_blocks(const Context& context, const QuantizedLinear& call) {
    std::atomic<bool> full{false};
    const QuantizedLinearKernels& kernels = context.kernels.quantized_linear;
    VISIONLLM_TRY(context.parallel((call.rows + kBlockRows - 1) / kBlockRows,
        [&](int64_t i) noexcept {
            const int64_t from = i * kBlockRows, to = from + kBlockRows;
            if (!multiply_rows(kernels, call, from, to < call.rows ? to : call.rows)) {
                full.store(true, std::memory_order_relaxed);
            }
        }));
    return full.load() ? context.invalid("out of memory") : nullptr;
}

ort::Status* compute_with(Context& context, const float* bias, Activation activation) {
    Tensor x, weight, scales;
    VISIONLLM_TRY(context.input(0, "x", 3, &x));
    VISIONLLM_TRY(context.input(1, "weight", 3, &weight));
    VISIONLLM_TRY(context.input(2, "scales", 2, &scales));
    QuantizedLinear call{};
    call.bias = bias;
    call.activation = activation;
    call.inputs = context.attributes[0].whole;
    call.outputs = context.attributes[1].whole;
    call.bits = static_cast<int>(context.attributes[2].whole);
    call.block = context.attributes[3].whole;
    const int64_t level = context.attributes[4].whole;
    VISIONLLM_TRY(check_sizes(context, call, x, weight, scales));
    if (level != 1 && level != 4) {
        return context.invalid("accuracy_level expected 1 or 4, got %lld", text(level));
    }
    const int64_t output_shape[3] = {x.shape[0], x.shape[1], call.outputs};
    void* y = nullptr;
    VISIONLLM_TRY(context.output(0, output_shape, 3, &y));
    call.rows = x.shape[0] * x.shape[1];
    if (call.rows == 0 || call.outputs == 0) return nullptr;
    call.x = static_cast<const float*>(x.data);
    call.weight = static_cast<const uint8_t*>(weight.data);
    call.scales = static_cast<const uint16_t*>(scales.data);
    call.y = static_cast<float*>(y);

    const QuantizedLinearKernels& kernels = context.kernels.quantized_linear;
    if (level == 1) {
        return multiply(context, call, kernels.exact_tasks(call), kernels.exact, false);
    }
    if (call.rows >= kRowBlocksFrom) return multiply_in_row_blocks(context, call);
    call.room = thread_room(0, kernels.room_bytes(call));
    if (call.room == nullptr) return context.invalid("out of memory");
    if (call.rows <= kRoundRows) {
        kernels.round(call, 0, call.rows);
    } else {
        VISIONLLM_TRY(context.parallel((call.rows + kRoundRows - 1) / kRoundRows,
            [&](int64_t i) noexcept {
                const int64_t from = i * kRoundRows, to = from + kRoundRows;
                kernels.round(call, from, to < call.rows ? to : call.rows);
            }));
    }
    return multiply(context, call, kernels.rounded_tasks(call), kernels.rounded,
        kernels.finishes(call));
}

ort::Status* compute(Context& context) {
    return compute_with(context, nullptr, Activation::kNone);
}

ort::Status* compute_dense(Context& context) {
    Tensor bias;
    VISIONLLM_TRY(context.input(3, "bias", 1, &bias));
    const int64_t outputs = context.attributes[1].whole, activation = context.attributes[5].whole;
    if (bias.shape[0] != outputs) {
        return context.invalid("input 'bias' expected [%lld], got [%lld]", text(outputs),
            text(bias.shape[0]));
    }
    if (activation < 0 || activation > static_cast<int64_t>(Activation::kRelu)) {
        return context.invalid("activation expected 0 to 3, got %lld", text(activation));
    }
    return compute_with(
        context, static_cast<const float*>(bias.data), static_cast<Activation>(activation));
}

}  // namespace

const Operator kQuantizedLinear = {
    "QuantizedLinear", 3, 1, 1, {{ort::kFloat32, ort::kUInt8, ort::kFloat16, ort::kFloat32}},
    compute, 5,
    {{"K", Attribute::kInt}, {"N", Attribute::kInt}, {"bits", Attribute::kInt},
        {"block_size", Attribute::kInt}, {"accuracy_level", Attribute::kInt}}};

const Operator kQuantizedDense = {
    "QuantizedDense", 4, 1, 1,
    {{ort::kFloat32, ort::kUInt8, ort::kFloat16, ort::kFloat32, ort::kFloat32}}, compute_dense, 6,
    {{"K", Attribute::kInt}, {"N", Attribute::kInt}, {"bits", Attribute::kInt},
        {"block_size", Attribute::kInt}, {"accuracy_level", Attribute::kInt},
        {"activation", Attribute::kInt}}};

}  // namespace visionllm::cpu
