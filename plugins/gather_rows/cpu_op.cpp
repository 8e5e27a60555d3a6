// GatherRows for the CPU library: copies, so there is one kernel for all instruction sets.

#include <string.h>

#include <atomic>

#include "../cpu/operator.h"

namespace visionllm::cpu {
namespace {

// Bytes of one task: enough to be worth a thread.
constexpr int64_t kTaskBytes = 1 << 18;

ort::Status* compute(Context& context) {
    Tensor x, index;
    VISIONLLM_TRY(context.input(0, "x", 2, &x));
    VISIONLLM_TRY(context.input(1, "index", 1, &index));
    const int64_t rows = x.shape[0], columns = x.shape[1], count = index.shape[0];
    const int64_t shape[2] = {count, columns};
    void* y = nullptr;
    VISIONLLM_TRY(context.output(0, shape, 2, &y));
    if (count == 0 || columns == 0) return nullptr;
    const float* from = static_cast<const float*>(x.data);
    const int32_t* wanted = static_cast<const int32_t*>(index.data);
    float* to = static_cast<float*>(y);
    const int64_t bytes = columns * 4, step = bytes < kTaskBytes ? kTaskBytes / bytes : 1;
    std::atomic<bool> outside{false};
    VISIONLLM_TRY(context.parallel((count + step - 1) / step, [&](int64_t task) noexcept {
        const int64_t end = (task + 1) * step < count ? (task + 1) * step : count;
        for (int64_t i = task * step; i < end;) {
            // Neighbours that stay neighbours are copied at once, and so are rows of zeros.
            const int64_t row = wanted[i];
            int64_t run = 1;
            while (i + run < end && wanted[i + run] == (row < 0 ? row : row + run)) ++run;
            const size_t size = static_cast<size_t>(run * bytes);
            if (row < 0) {
                memset(to + i * columns, 0, size);
            } else if (row + run <= rows) {
                memcpy(to + i * columns, from + row * columns, size);
            } else {
                outside.store(true, std::memory_order_relaxed);
            }
            i += run;
        }
    }));
    if (outside.load()) {
        return context.invalid("input 'index' expected numbers below the %lld rows of 'x'",
            static_cast<long long>(rows));
    }
    return nullptr;
}

}  // namespace

const Operator kGatherRows = {"GatherRows", 2, 1, 1,
    {{ort::kFloat32, ort::kInt32, ort::kFloat32}}, compute};

}  // namespace visionllm::cpu
