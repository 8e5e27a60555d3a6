// The two functions that TensorRT looks up in a plugin library (IPluginRegistry::loadLibrary).
#include "plugin_base.h"

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(
    nvinfer1::ILoggerFinder* finder) {
    visionllm::loggerFinder() = finder;
}

extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const*
getCreators(int32_t& count) {
    visionllm::undoSelfRegistration();
    count = static_cast<int32_t>(visionllm::creators().size());
    return visionllm::creators().data();
}
