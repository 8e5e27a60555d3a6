// RowNormalization for the CPU library: checks the inputs; a row is a task.

#include "../cpu/operator.h"

namespace visionllm::cpu {
namespace {

ort::Status* compute(Context& context) {
    Tensor x, scale, bias;
    VISIONLLM_TRY(context.input(0, "x", 3, &x));
    VISIONLLM_TRY(context.input(1, "scale", 1, &scale));
    VISIONLLM_TRY(context.input(2, "bias", 1, &bias));
    const int64_t channels = x.shape[1], count = x.shape[2];
    const Tensor* const per_channel[] = {&scale, &bias};
    for (int i = 0; i < 2; ++i) {
        if (per_channel[i]->shape[0] != channels) {
            return context.invalid("input '%s' expected [%lld], one number for each row of 'x', "
                                   "got [%lld]",
                i == 0 ? "scale" : "bias", static_cast<long long>(channels),
                static_cast<long long>(per_channel[i]->shape[0]));
        }
    }
    void* y = nullptr;
    VISIONLLM_TRY(context.output(0, x.shape, 3, &y));
    if (count == 0) return nullptr;
    const float* const numbers = static_cast<const float*>(x.data);
    const float* const scales = static_cast<const float*>(scale.data);
    const float* const biases = static_cast<const float*>(bias.data);
    const float epsilon = context.attributes[0].real;
    return context.parallel(x.shape[0] * channels, [&](int64_t row) noexcept {
        const int64_t channel = row % channels;
        context.kernels.normalize_row(numbers + row * count, static_cast<float*>(y) + row * count,
            count, scales[channel], biases[channel], epsilon);
    });
}

}  // namespace

const Operator kRowNormalization = {
    "RowNormalization", 3, 1, 1,
    {{ort::kFloat32, ort::kFloat32, ort::kFloat32, ort::kFloat32}}, compute, 2,
    {{"epsilon", Attribute::kFloat}, {"parts", Attribute::kInt}}};

}  // namespace visionllm::cpu
