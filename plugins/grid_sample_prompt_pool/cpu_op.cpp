// GridSamplePromptPool for the CPU library: checks the inputs, then runs the kernel's two steps.

#include <math.h>

#include <vector>

#include "../cpu/operator.h"

namespace visionllm::cpu {
namespace {

// Channels of one task: wide enough for whole vectors, narrow enough to share one region's work.
constexpr int64_t kChannelBlock = 256;

// Pixel i stands at i / pixels * cells - 0.5 on an axis whose cell centres are whole numbers.
struct AxisTable {
    std::vector<int64_t> low;
    std::vector<float> low_share, high_share;

    AxisTable(int64_t pixels, int64_t cells) {
        for (int64_t i = 0; i < pixels; ++i) {
            const double at =
                static_cast<double>(i * cells) / static_cast<double>(pixels) - 0.5;
            const double cell = floor(at);
            low.push_back(static_cast<int64_t>(cell));
            low_share.push_back(static_cast<float>(cell + 1.0 - at));
            high_share.push_back(static_cast<float>(at - cell));
        }
    }

    PromptPoolAxis view(int64_t cells) const {
        return {static_cast<int64_t>(low.size()), cells, low.data(), low_share.data(),
            high_share.data()};
    }
};

ort::Status* compute(Context& context) {
    Tensor features, masks, region_image;
    VISIONLLM_TRY(context.input(0, "features", 4, &features));
    VISIONLLM_TRY(context.input(1, "masks", 3, &masks));
    VISIONLLM_TRY(context.input(2, "region_image", 1, &region_image));
    PromptPool call{};
    call.images = features.shape[0];
    call.channels = features.shape[3];
    call.regions = masks.shape[0];
    if (region_image.shape[0] != call.regions) {
        return context.invalid("input 'region_image' expected one entry for each of the %lld "
            "masks, got %lld", static_cast<long long>(call.regions),
            static_cast<long long>(region_image.shape[0]));
    }
    const int64_t grid_height = features.shape[1], grid_width = features.shape[2];
    const AxisTable y(masks.shape[1], grid_height), x(masks.shape[2], grid_width);
    const int64_t cells = grid_height * grid_width, rows = grid_height * masks.shape[2];
    std::vector<float> weights(static_cast<size_t>(call.regions * cells));
    std::vector<float> scratch(static_cast<size_t>(call.regions * rows));
    const int64_t output_shape[2] = {call.regions, call.channels};
    VISIONLLM_TRY(context.output(0, output_shape, 2, &call.output));
    call.features = features.data;
    call.masks = static_cast<const float*>(masks.data);
    call.region_image = static_cast<const int32_t*>(region_image.data);
    call.y = y.view(grid_height);
    call.x = x.view(grid_width);
    call.weights = weights.data();

    VISIONLLM_TRY(context.parallel(call.regions, [&](int64_t region) noexcept {
        context.kernels.prompt_pool_fold(call, region, scratch.data() + region * rows);
    }));
    const int64_t blocks = (call.channels + kChannelBlock - 1) / kChannelBlock;
    const PromptPoolSum sum = context.kernels.prompt_pool_sum[element_index(features.element)];
    return context.parallel(call.regions * blocks, [&](int64_t i) noexcept {
        const int64_t from = i % blocks * kChannelBlock, to = from + kChannelBlock;
        sum(call, i / blocks, from, to < call.channels ? to : call.channels);
    });
}

}  // namespace

const Operator kGridSamplePromptPool = {
    "GridSamplePromptPool", 3, 1, 3,
    {{ort::kFloat32, ort::kFloat32, ort::kInt32, ort::kFloat32},
        {ort::kFloat16, ort::kFloat32, ort::kInt32, ort::kFloat16},
        {ort::kBFloat16, ort::kFloat32, ort::kInt32, ort::kBFloat16}},
    compute};

}  // namespace visionllm::cpu
