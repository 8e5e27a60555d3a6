// Pooling over the foreground of a mask as a TensorRT plugin; ports and letters as in spec.py.
#include "../tensorrt_glue/plugin_base.h"

#include "launch.cuh"

namespace {

constexpr auto F32 = nvinfer1::DataType::kFLOAT;
constexpr auto F16 = nvinfer1::DataType::kHALF;
constexpr auto BF16 = nvinfer1::DataType::kBF16;
constexpr auto I32 = nvinfer1::DataType::kINT32;

struct GridSamplePromptPool {
    static constexpr char const* kName = "GridSamplePromptPool";
    static constexpr int32_t kInputs = 3;
    static constexpr int32_t kOutputs = 1;
    static constexpr visionllm::Port kPorts[kInputs + kOutputs] = {
        {"features", {"N", "Gh", "Gw", "C"}, {F32, F16, BF16}},
        {"masks", {"R", "H", "W"}, {F32, F32, F32}},
        {"region_image", {"R"}, {I32, I32, I32}},
        {"pooled", {"R", "C"}, {F32, F16, BF16}},
    };

    static int32_t enqueue(visionllm::Launch const& call) {
        auto const& features = call.in[0].dims.d;
        auto const& masks = call.in[1].dims.d;
        return visionllm_pool_enqueue(call.combination, call.inputs, call.outputs, features[0],
            features[1], features[2], features[3], masks[0], masks[1], masks[2], call.stream);
    }
};

visionllm::Registration<GridSamplePromptPool> registration;

}  // namespace
