// UnmaskedAttention for the CPU library: checks the inputs, divides the work into tasks.

#include <math.h>

#include <algorithm>

#include "../cpu/operator.h"

namespace visionllm::cpu {
namespace {

// So many tasks keep the threads of a large processor busy, and a task of fewer rows would pack keys and
// values for too little. Fixed numbers: the cut depends on sizes only.
constexpr int64_t kTasks = 32;
constexpr int64_t kFewestRows = 96;
// Multiply-adds of a task of small heads: some tens of microseconds.
constexpr int64_t kTaskWork = 1 << 21;
// Multiply-adds below which waking another thread costs more than it saves.
constexpr int64_t kSmallWork = 1 << 18;
// Values of accuracy_level.
constexpr int64_t kExact = 1, kRounded = 3;

long long say(int64_t number) { return static_cast<long long>(number); }

int64_t up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

struct Axis {
    const char* input;
    const Tensor* tensor;
    size_t axis;
    int64_t expected;
};

ort::Status* read_bias(
    const Context& context, const Tensor& bias, const Tensor& index, UnmaskedAttention* call) {
    call->biases = bias.shape[0];
    call->bias_heads = bias.shape[1];
    call->repeat = index.shape[0];
    if (call->bias_heads != 1 && call->bias_heads != call->heads) {
        return context.invalid("input 'bias': axis 1 expected 1 or the %lld heads, got %lld",
            say(call->heads), say(call->bias_heads));
    }
    const bool one_number = bias.shape[2] == 1 && bias.shape[3] == 1;
    if (!one_number && (bias.shape[2] != call->rows || bias.shape[3] != call->keys)) {
        return context.invalid("input 'bias' expected [.., .., %lld, %lld] or [.., .., 1, 1], got "
            "[.., .., %lld, %lld]", say(call->rows), say(call->keys), say(bias.shape[2]),
            say(bias.shape[3]));
    }
    if (call->repeat <= 0 || call->batch % call->repeat != 0) {
        return context.invalid("input 'bias_index': axis 0 expected a divisor of the batch of %lld, "
            "got %lld", say(call->batch), say(call->repeat));
    }
    call->bias_index = static_cast<const int64_t*>(index.data);
    for (int64_t i = 0; i < call->repeat; ++i) {
        if (call->bias_index[i] < 0 || call->bias_index[i] >= call->biases) {
            return context.invalid("input 'bias_index' expected numbers from 0 to %lld, got %lld",
                say(call->biases - 1), say(call->bias_index[i]));
        }
    }
    // One number for all keys of a row changes no softmax.
    call->bias = one_number ? nullptr : static_cast<const float*>(bias.data);
    return nullptr;
}

ort::Status* read_inputs(Context& context, UnmaskedAttention* call) {
    Tensor query, key, value, bias, index;
    VISIONLLM_TRY(context.input(0, "query", 3, &query));
    VISIONLLM_TRY(context.input(1, "key", 3, &key));
    VISIONLLM_TRY(context.input(2, "value", 3, &value));
    VISIONLLM_TRY(context.input(3, "bias", 4, &bias));
    VISIONLLM_TRY(context.input(4, "bias_index", 1, &index));
    const int64_t heads = context.attributes[0].whole, width = query.shape[2];
    if (heads <= 0 || width % heads != 0) {
        return context.invalid("input 'query': axis 2 expected a multiple of the %lld heads, got %lld",
            say(heads), say(width));
    }
    call->batch = query.shape[0];
    call->rows = query.shape[1];
    call->keys = key.shape[1];
    call->heads = heads;
    call->depth = width / heads;
    const Axis axes[] = {{"key", &key, 0, call->batch}, {"key", &key, 2, width},
        {"value", &value, 0, call->batch}, {"value", &value, 1, call->keys},
        {"value", &value, 2, width}};
    for (const Axis& axis : axes) {
        const int64_t got = axis.tensor->shape[axis.axis];
        if (got != axis.expected) {
            return context.invalid("input '%s': axis %zu expected %lld, got %lld", axis.input,
                axis.axis, say(axis.expected), say(got));
        }
    }
    VISIONLLM_TRY(read_bias(context, bias, index, call));
    call->query = static_cast<const float*>(query.data);
    call->key = static_cast<const float*>(key.data);
    call->value = static_cast<const float*>(value.data);
    call->log_scale = static_cast<float>(context.attributes[1].real * M_LOG2E);
    void* y = nullptr;
    VISIONLLM_TRY(context.output(0, query.shape, 3, &y));
    call->y = static_cast<float*>(y);
    return nullptr;
}

ort::Status* compute(Context& context) {
    UnmaskedAttention call{};
    VISIONLLM_TRY(read_inputs(context, &call));
    const int64_t level = context.attributes[2].whole;
    if (level != kExact && level != kRounded) {
        return context.invalid("accuracy_level expected 1 or 3, got %lld", say(level));
    }
    const int64_t heads = call.batch * call.heads;
    if (heads * call.rows * call.depth == 0) return nullptr;
    if (call.keys == 0) return context.invalid("input 'key': axis 1 expected at least 1, got 0");
    const int64_t wide = up(call.depth, kUnmaskedAttentionTile);
    const int64_t tiles = up(call.keys, kUnmaskedAttentionTile);
    const int64_t floats = kUnmaskedAttentionRows * (2 * wide + tiles) +
                           2 * tiles * up(call.depth, kUnmaskedAttentionPanel) +
                           kUnmaskedAttentionTile / 2 * wide;
    const int64_t work = 2 * call.rows * call.keys * call.depth;
    const int64_t each = std::max<int64_t>(1, kTaskWork / work);
    const int64_t groups = (heads + each - 1) / each;
    const int64_t wanted = (kTasks + groups - 1) / groups;
    const int64_t parts = std::clamp<int64_t>(call.rows / kFewestRows, 1, wanted);
    // Set by whichever task finds no memory; the others go on.
    bool missing[1] = {false};
    const auto attend = level == kRounded ? context.kernels.rounded_unmasked_attention
                                          : context.kernels.unmasked_attention;
    const auto task = [&](int64_t i) noexcept {
        float* workspace =
            static_cast<float*>(thread_room(1, static_cast<size_t>(floats) * sizeof(float)));
        if (workspace == nullptr) {
            __atomic_store_n(missing, true, __ATOMIC_RELAXED);
            return;
        }
        const int64_t first = i / parts * each, part = i % parts;
        attend(call,
            {first, std::min(first + each, heads), part * call.rows / parts,
                (part + 1) * call.rows / parts},
            workspace);
    };
    if (groups * parts == 1 || heads * work < kSmallWork) {
        for (int64_t i = 0; i < groups * parts; ++i) task(i);
    } else {
        VISIONLLM_TRY(context.parallel(groups * parts, task));
    }
    if (*missing) return context.invalid("no memory for %lld floats", say(floats));
    return nullptr;
}

}  // namespace

const Operator kUnmaskedAttention = {
    "UnmaskedAttention", 5, 1, 1,
    {{ort::kFloat32, ort::kFloat32, ort::kFloat32, ort::kFloat32, ort::kInt64, ort::kFloat32}},
    compute, 3,
    {{"num_heads", Attribute::kInt}, {"scale", Attribute::kFloat},
        {"accuracy_level", Attribute::kInt}}};

}  // namespace visionllm::cpu
