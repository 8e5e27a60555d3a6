// GatedSilu for the CPU library: checks the input, cuts the rows into tasks.

#include "../cpu/operator.h"

namespace visionllm::cpu {
namespace {

// Numbers of one task: enough to be worth a thread, so that a single token stays on one.
constexpr int64_t kTaskNumbers = 16384;

ort::Status* compute(Context& context) {
    Tensor gate_up;
    VISIONLLM_TRY(context.input(0, "gate_up", 3, &gate_up));
    const int64_t width = gate_up.shape[2], half = width / 2;
    if (width % 2 != 0) {
        return context.invalid("input 'gate_up': axis 2 expected an even length, got %lld",
            static_cast<long long>(width));
    }
    void* y = nullptr;
    const int64_t shape[3] = {gate_up.shape[0], gate_up.shape[1], half};
    VISIONLLM_TRY(context.output(0, shape, 3, &y));
    const int64_t rows = shape[0] * shape[1];
    if (half == 0) return nullptr;
    const int64_t bytes = gate_up.element == ort::kFloat32 ? 4 : 2;
    const int64_t step = half < kTaskNumbers ? kTaskNumbers / half : 1;
    const GatedSiluRow kernel = context.kernels.gated_silu[element_index(gate_up.element)];
    const auto task = [&](int64_t i) noexcept {
        const int64_t end = (i + 1) * step < rows ? (i + 1) * step : rows;
        for (int64_t row = i * step; row < end; ++row) {
            const char* gate = static_cast<const char*>(gate_up.data) + row * width * bytes;
            char* out = static_cast<char*>(y) + row * half * bytes;
            kernel(gate, gate + half * bytes, out, half);
        }
    };
    const int64_t tasks = (rows + step - 1) / step;
    if (tasks == 1) {
        task(0);
        return nullptr;
    }
    return context.parallel(tasks, task);
}

}  // namespace

const Operator kGatedSilu = {
    "GatedSilu", 1, 1, 3,
    {{ort::kFloat32, ort::kFloat32}, {ort::kFloat16, ort::kFloat16},
        {ort::kBFloat16, ort::kBFloat16}},
    compute};

}  // namespace visionllm::cpu
