// Multi-scale deformable attention as a TensorRT plugin; ports and letters as in spec.py.
#include "../tensorrt_glue/plugin_base.h"

#include "launch.cuh"

namespace {

constexpr auto F32 = nvinfer1::DataType::kFLOAT;
constexpr auto F16 = nvinfer1::DataType::kHALF;
constexpr auto BF16 = nvinfer1::DataType::kBF16;
constexpr auto I32 = nvinfer1::DataType::kINT32;

struct MultiScaleDeformableAttention {
    static constexpr char const* kName = "MultiScaleDeformableAttention";
    static constexpr int32_t kInputs = 5;
    static constexpr int32_t kOutputs = 1;
    static constexpr visionllm::Port kPorts[kInputs + kOutputs] = {
        {"value", {"N", "S", "M", "D"}, {F32, F16, BF16}},
        {"spatial_shapes", {"L", "2"}, {I32, I32, I32}},
        {"level_start_index", {"L"}, {I32, I32, I32}},
        {"sampling_locations", {"N", "Lq", "M", "L", "P", "2"}, {F32, F32, F32}},
        {"attention_weights", {"N", "Lq", "M", "L", "P"}, {F32, F16, BF16}},
        {"output", {"N", "Lq", "M", "D"}, {F32, F16, BF16}},
    };

    static int32_t enqueue(visionllm::Launch const& call) {
        auto const& value = call.in[0].dims.d;
        auto const& locations = call.in[3].dims.d;
        return visionllm_msda_enqueue(call.combination, call.inputs, call.outputs, value[0],
            value[1], value[2], value[3], locations[3], locations[1], locations[4], call.stream);
    }
};

visionllm::Registration<MultiScaleDeformableAttention> registration;

}  // namespace
