// CachedAttention and QuantizedCachedAttention for the CPU library: checks the inputs, brings the cache into the outputs, and
// divides the work into tasks.

#include <math.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "../cpu/operator.h"

namespace visionllm::cpu {
namespace {

// Rows of a task's block at most, and at least while there are too few tasks to go round.
constexpr int64_t kMostRows = 240;
constexpr int64_t kFewestRows = 60;
// So many tasks keep the threads of a large processor busy. A fixed number, so that the order of the
// sums, and with it the last bit of a result, does not depend on the machine.
constexpr int64_t kTasks = 32;
// Multiply-adds below which waking another thread costs more than it saves.
constexpr int64_t kSmallWork = 1 << 18;

long long say(int64_t number) { return static_cast<long long>(number); }

struct Axis {
    const char* input;
    const Tensor* tensor;
    size_t axis;
    int64_t expected;
};

ort::Status* read_inputs(const Context& context, CachedAttention* call, Tensor (&in)[8]) {
    constexpr const char* kNames[8] = {
        "query", "key", "value", "past_key", "past_value", "past_length", "cos", "sin"};
    constexpr size_t kRanks[8] = {3, 3, 3, 4, 4, 1, 2, 2};
    for (size_t i = 0; i < 8; ++i) {
        VISIONLLM_TRY(context.input(i, kNames[i], kRanks[i], &in[i]));
    }
    call->heads = context.attributes[0].whole;
    call->kv_heads = context.attributes[1].whole;
    const int64_t heads = call->heads, kv_heads = call->kv_heads;
    if (kv_heads <= 0 || heads <= 0 || heads % kv_heads != 0) {
        return context.invalid("num_heads expected a multiple of kv_num_heads, got %lld and %lld",
            say(heads), say(kv_heads));
    }
    call->batch = in[0].shape[0];
    call->rows = in[0].shape[1];
    call->capacity = in[3].shape[2];
    call->depth = in[3].shape[3];
    const int64_t batch = call->batch, rows = call->rows, depth = call->depth;
    if (depth <= 0 || depth % 2 != 0) {
        return context.invalid("head size expected an even number, got %lld", say(depth));
    }
    const Axis axes[] = {{"query", &in[0], 2, heads * depth}, {"key", &in[1], 0, batch},
        {"key", &in[1], 1, rows}, {"key", &in[1], 2, kv_heads * depth}, {"value", &in[2], 0, batch},
        {"value", &in[2], 1, rows}, {"value", &in[2], 2, kv_heads * depth},
        {"past_key", &in[3], 0, batch}, {"past_key", &in[3], 1, kv_heads},
        {"past_value", &in[4], 0, batch}, {"past_value", &in[4], 1, kv_heads},
        {"past_value", &in[4], 2, call->capacity}, {"past_value", &in[4], 3, depth},
        {"past_length", &in[5], 0, 1}, {"cos", &in[6], 1, depth / 2}, {"sin", &in[7], 1, depth / 2}};
    for (const Axis& axis : axes) {
        const int64_t got = axis.tensor->shape[axis.axis];
        if (got != axis.expected) {
            return context.invalid("input '%s': axis %zu expected %lld, got %lld", axis.input,
                axis.axis, say(axis.expected), say(got));
        }
    }
    call->start = *static_cast<const int64_t*>(in[5].data);
    // The subtraction keeps a wild past_length from overflowing.
    if (call->start < 0 || rows > call->capacity || call->start > call->capacity - rows) {
        return context.invalid("past_length %lld and %lld new rows do not fit into the cache's %lld "
            "rows. Compile with a longer context, or shorten the prompt", say(call->start), say(rows),
            say(call->capacity));
    }
    const int64_t angles = std::min(in[6].shape[0], in[7].shape[0]);
    if (call->start + rows > angles) {
        return context.invalid("'cos' and 'sin' expected at least %lld rows, got %lld",
            say(call->start + rows), say(angles));
    }
    call->log_scale = static_cast<float>(context.attributes[2].real * M_LOG2E);
    return nullptr;
}

// Makes the outputs; where one is not the past itself, everything but the new rows is copied.
ort::Status* place_cache(
    Context& context, const CachedAttention& call, const Tensor& past, size_t index, void** out) {
    const int64_t shape[4] = {call.batch, call.kv_heads, call.capacity, call.depth};
    VISIONLLM_TRY(context.output(index, shape, 4, out));
    if (*out == past.data) return nullptr;
    const size_t width = past.element == ort::kFloat32 ? 4 : past.element == ort::kInt8 ? 1 : 2;
    const size_t row = static_cast<size_t>(call.depth) * width;
    const size_t before = static_cast<size_t>(call.start) * row;
    const size_t until = static_cast<size_t>(call.start + call.rows) * row;
    const size_t plane = static_cast<size_t>(call.capacity) * row;
    const char* from = static_cast<const char*>(past.data);
    char* to = static_cast<char*>(*out);
    return context.parallel(call.batch * call.kv_heads, [&](int64_t i) noexcept {
        const size_t at = static_cast<size_t>(i) * plane;
        memcpy(to + at, from + at, before);
        memcpy(to + at + until, from + at + until, plane - until);
    });
}

struct Plan {
    CachedAttentionSizes sizes;
    std::vector<CachedAttentionTask> tasks;
    int64_t ranges;   // ranges of keys that each block of rows is cut into
};

int64_t round_up_to(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// Cuts a call into tasks, the ones with the most keys first; the ranges of one block of rows lie
// side by side.
Plan cut_into_tasks(const CachedAttention& call) {
    const int64_t group = call.heads / call.kv_heads, planes = call.batch * call.kv_heads;
    const int64_t end = call.start + call.rows;
    int64_t most = kMostRows, rows = 0, blocks = 0;
    for (;; most /= 2) {
        rows = std::min(std::max<int64_t>(most / group, 1), call.rows);
        blocks = (call.rows + rows - 1) / rows;
        if (most <= kFewestRows || planes * blocks >= kTasks) break;
    }
    // Blocks of equal size, so that the last one is no remainder.
    rows = (call.rows + blocks - 1) / blocks;
    blocks = (call.rows + rows - 1) / rows;
    const int64_t tiles = round_up_to(end, kCachedAttentionTile) / kCachedAttentionTile;
    const int64_t wanted = (kTasks + planes * blocks - 1) / (planes * blocks);
    const int64_t tiles_each = (tiles + std::min(wanted, tiles) - 1) / std::min(wanted, tiles);
    Plan plan{};
    plan.ranges = (tiles + tiles_each - 1) / tiles_each;
    const int64_t padded = round_up_to(rows * group, kCachedAttentionRowStep);
    const int64_t width = round_up_to(call.depth, kCachedAttentionTile);
    plan.sizes.block_rows = padded;
    plan.sizes.state = round_up_to(padded * (width + 2), 16);
    plan.sizes.workspace = padded * (width + kCachedAttentionTile) +
                           2 * kCachedAttentionTile * width + plan.sizes.state;
    plan.tasks.reserve(static_cast<size_t>(planes * blocks * plan.ranges));
    for (int64_t block = blocks - 1; block >= 0; --block) {
        const int64_t first = block * rows, count = std::min(rows, call.rows - first);
        for (int64_t plane = 0; plane < planes; ++plane) {
            for (int64_t range = 0; range < plan.ranges; ++range) {
                const int64_t key = range * tiles_each * kCachedAttentionTile;
                const int64_t last = key + tiles_each * kCachedAttentionTile;
                plan.tasks.push_back({plane / call.kv_heads, plane % call.kv_heads, first, count, key,
                    std::min(last, call.start + first + count), nullptr});
            }
        }
    }
    return plan;
}

ort::Status* attend(const Context& context, const CachedAttention& call,
    const CachedAttentionKernels& kernels, Plan& plan) {
    const int64_t count = static_cast<int64_t>(plan.tasks.size());
    // Asked once: the answer can cost a look into the file system.
    static const int64_t threads = std::max<int64_t>(1, std::thread::hardware_concurrency());
    const bool small =
        call.batch * call.heads * call.rows * (call.start + call.rows) * call.depth * 2 < kSmallWork;
    const int64_t workers = small ? 1 : std::min(count, threads);
    const int64_t floats =
        workers * plan.sizes.workspace + (plan.ranges > 1 ? count * plan.sizes.state : 0);
    float* const workspaces =
        static_cast<float*>(thread_room(0, static_cast<size_t>(floats) * sizeof(float)));
    if (workspaces == nullptr) return context.invalid("no memory for %lld floats", say(floats));
    float* const states = workspaces + workers * plan.sizes.workspace;
    std::vector<std::atomic<int64_t>> missing(
        static_cast<size_t>(plan.ranges > 1 ? count / plan.ranges : 0));
    for (auto& ranges : missing) ranges = plan.ranges;
    if (plan.ranges > 1) {
        for (int64_t i = 0; i < count; ++i) {
            plan.tasks[static_cast<size_t>(i)].state = states + i * plan.sizes.state;
        }
    }
    // Every worker takes the next task, so the long ones come first whatever the session's pool does;
    // who finishes the last range of a block merges it.
    std::atomic<int64_t> next{0};
    const auto work = [&](int64_t worker) noexcept {
        float* workspace = workspaces + worker * plan.sizes.workspace;
        for (int64_t i; (i = next.fetch_add(1)) < count;) {
            kernels.attend(call, plan.tasks[static_cast<size_t>(i)], plan.sizes, workspace);
            if (plan.ranges == 1) continue;
            const size_t block = static_cast<size_t>(i / plan.ranges);
            if (missing[block].fetch_sub(1) != 1) continue;
            const size_t first = block * static_cast<size_t>(plan.ranges);
            kernels.merge(call, plan.tasks[first], plan.sizes, plan.ranges);
        }
    };
    if (workers > 1) return context.parallel(workers, work);
    work(0);
    return nullptr;
}

ort::Status* run(Context& context, CachedAttention& call, const Tensor (&in)[8]) {
    VISIONLLM_TRY(context.output(0, in[0].shape, 3, &call.attention));
    VISIONLLM_TRY(place_cache(context, call, in[3], 1, &call.cached_key));
    VISIONLLM_TRY(place_cache(context, call, in[4], 2, &call.cached_value));
    if (call.batch == 0 || call.rows == 0) return nullptr;
    call.query = in[0].data;
    call.key = in[1].data;
    call.value = in[2].data;
    call.cos = in[6].data;
    call.sin = in[7].data;
    const bool mixed = in[0].element == ort::kFloat32 && in[3].element == ort::kFloat16;
    const int combination =
        in[3].element == ort::kInt8 ? 4 : mixed ? 3 : element_index(in[0].element);
    const CachedAttentionKernels& kernels = context.kernels.cached_attention[combination];

    constexpr int64_t kStep = 16;
    const int64_t steps = (call.rows + kStep - 1) / kStep;
    const auto append = [&](int64_t i) noexcept {
        const int64_t first = i % steps * kStep;
        kernels.append(call, i / steps, first, std::min(kStep, call.rows - first));
    };
    if (call.batch * steps == 1) {
        append(0);
    } else {
        VISIONLLM_TRY(context.parallel(call.batch * steps, append));
    }
    Plan plan = cut_into_tasks(call);
    return attend(context, call, kernels, plan);
}

ort::Status* compute(Context& context) {
    CachedAttention call{};
    Tensor in[8];
    VISIONLLM_TRY(read_inputs(context, &call, in));
    return run(context, call, in);
}

// Scales of [KV, Dh] channels: input `index`, and one over each of them.
ort::Status* read_scales(const Context& context, const CachedAttention& call, size_t index,
    const char* name, const float** scales, std::vector<float>* inverse) {
    Tensor tensor;
    VISIONLLM_TRY(context.input(index, name, 2, &tensor));
    if (tensor.shape[0] != call.kv_heads || tensor.shape[1] != call.depth) {
        return context.invalid("input '%s' expected [%lld, %lld], got [%lld, %lld]", name,
            say(call.kv_heads), say(call.depth), say(tensor.shape[0]), say(tensor.shape[1]));
    }
    *scales = static_cast<const float*>(tensor.data);
    inverse->resize(static_cast<size_t>(call.kv_heads * call.depth));
    for (size_t i = 0; i < inverse->size(); ++i) {
        if (!((*scales)[i] > 0.0f)) {
            return context.invalid("input '%s' expected numbers above 0, got %g in channel %lld of "
                "head %lld", name, static_cast<double>((*scales)[i]),
                say(static_cast<int64_t>(i) % call.depth), say(static_cast<int64_t>(i) / call.depth));
        }
        (*inverse)[i] = 1.0f / (*scales)[i];
    }
    return nullptr;
}

ort::Status* compute_quantized(Context& context) {
    CachedAttention call{};
    Tensor in[8];
    std::vector<float> key_inverse, value_inverse;
    VISIONLLM_TRY(read_inputs(context, &call, in));
    VISIONLLM_TRY(read_scales(context, call, 8, "key_scale", &call.key_scale, &key_inverse));
    VISIONLLM_TRY(read_scales(context, call, 9, "value_scale", &call.value_scale, &value_inverse));
    call.key_inverse = key_inverse.data();
    call.value_inverse = value_inverse.data();
    return run(context, call, in);
}

}  // namespace

const Operator kCachedAttention = {
    "CachedAttention", 8, 3, 4,
    {{ort::kFloat32, ort::kFloat32, ort::kFloat32, ort::kFloat32, ort::kFloat32, ort::kInt64,
         ort::kFloat32, ort::kFloat32, ort::kFloat32, ort::kFloat32, ort::kFloat32},
        {ort::kFloat16, ort::kFloat16, ort::kFloat16, ort::kFloat16, ort::kFloat16, ort::kInt64,
            ort::kFloat16, ort::kFloat16, ort::kFloat16, ort::kFloat16, ort::kFloat16},
        {ort::kBFloat16, ort::kBFloat16, ort::kBFloat16, ort::kBFloat16, ort::kBFloat16, ort::kInt64,
            ort::kBFloat16, ort::kBFloat16, ort::kBFloat16, ort::kBFloat16, ort::kBFloat16},
        {ort::kFloat32, ort::kFloat32, ort::kFloat32, ort::kFloat16, ort::kFloat16, ort::kInt64,
            ort::kFloat32, ort::kFloat32, ort::kFloat32, ort::kFloat16, ort::kFloat16}},
    compute, 3,
    {{"num_heads", Attribute::kInt}, {"kv_num_heads", Attribute::kInt},
        {"scale", Attribute::kFloat}}};

const Operator kQuantizedCachedAttention = {
    "QuantizedCachedAttention", 10, 3, 1,
    {{ort::kFloat32, ort::kFloat32, ort::kFloat32, ort::kInt8, ort::kInt8, ort::kInt64,
        ort::kFloat32, ort::kFloat32, ort::kFloat32, ort::kFloat32, ort::kFloat32, ort::kInt8,
        ort::kInt8}},
    compute_quantized, 3,
    {{"num_heads", Attribute::kInt}, {"kv_num_heads", Attribute::kInt},
        {"scale", Attribute::kFloat}}};

}  // namespace visionllm::cpu
