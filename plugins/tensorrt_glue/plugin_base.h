// The TensorRT side of an operator, once for all of them: an IPluginV3 made from a table of ports.
//
// An operator's `tensorrt_plugin.cpp` states its ports (letters and types, as in its `spec.py`) and
// one function that launches; shapes, types, checks and registration follow from the table. Only
// calls that TensorRT 10.0 to 11.x and TensorRT-RTX share are used, and nothing of TensorRT is
// linked: the host's registry and logger are looked up at run time.
//
// How a creator reaches TensorRT:
//   1. `getCreators` (entry_points.cpp): IPluginRegistry::loadLibrary, trtexec --dynamicPlugins,
//      and engines that carry the library.
//   2. at dlopen: every registry of a TensorRT already in the process. That serves tools which only
//      open the file (Polygraphy --plugins).
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <link.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace visionllm {

constexpr char const* kNamespace = "visionllm";
constexpr char const* kVersion = "1";
constexpr int32_t kMaxRank = 8;
// Position i of every port's types together is one supported combination: fp32, fp16, bf16.
constexpr int32_t kCombinations = 3;

// An axis is a letter ("N"), or a fixed size written in digits ("2"); nullptr ends the list.
struct Port {
    char const* name;
    char const* axes[kMaxRank];
    nvinfer1::DataType types[kCombinations];

    int32_t rank() const {
        int32_t count = 0;
        while (count < kMaxRank && axes[count] != nullptr) ++count;
        return count;
    }
};

// What a launch gets. `combination` is also the number of the values' type in launch.cuh.
struct Launch {
    int32_t combination;
    nvinfer1::PluginTensorDesc const* in;
    nvinfer1::PluginTensorDesc const* out;
    void const* const* inputs;
    void* const* outputs;
    cudaStream_t stream;
};

// Library-wide state; a function of the header, so that any number of operators share it.
inline nvinfer1::ILoggerFinder*& loggerFinder() {
    static nvinfer1::ILoggerFinder* finder = nullptr;
    return finder;
}

// A TensorRT library of this process.
struct Host {
    std::string path;
    bool rtx;

    // The library is usually opened with RTLD_LOCAL (Python does), so its symbols are not in the
    // global scope; its own handle has them. Nothing is loaded: the host keeps it open.
    template <typename Function>
    Function* symbol(char const* name) const {
        void* handle = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
        if (handle == nullptr) return nullptr;
        void* address = dlsym(handle, name);
        dlclose(handle);
        return reinterpret_cast<Function*>(address);
    }

    // Which layout its registry and logger have. The plugin interfaces kept theirs from 10.0 to
    // 11.x, these two did not: 11.0 dropped the first functions of IPluginRegistry and gave ILogger
    // a base class. TensorRT-RTX 1.7 has the layout of 11; calling it through 10's crashes.
    int32_t abi() const {
        auto* major = symbol<int32_t()>("getInferLibMajorVersion");
        auto* minor = symbol<int32_t()>("getInferLibMinorVersion");
        if (major == nullptr || minor == nullptr) return 0;
        if (!rtx) return major();
        return major() > 1 || minor() >= 7 ? 11 : 0;
    }
};

#if NV_TENSORRT_MAJOR >= 10
constexpr int32_t kAbi = NV_TENSORRT_MAJOR;
#else  // headers of TensorRT-RTX
constexpr int32_t kAbi = NV_TENSORRT_MAJOR > 1 || NV_TENSORRT_MINOR >= 7 ? 11 : -1;
#endif

inline std::vector<Host> hosts() {
    std::vector<Host> found;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* list) -> int {
            char const* path = info->dlpi_name == nullptr ? "" : info->dlpi_name;
            char const* slash = std::strrchr(path, '/');
            char const* file = slash == nullptr ? path : slash + 1;
            bool const rtx = std::strncmp(file, "libtensorrt_rtx.so", 18) == 0;
            if (rtx || std::strncmp(file, "libnvinfer.so", 13) == 0) {
                static_cast<std::vector<Host>*>(list)->push_back({path, rtx});
            }
            return 0;
        },
        &found);
    return found;
}

// To the host's logger where its layout is known to be ours, else to stderr.
inline void logError(std::string const& message) {
    nvinfer1::ILogger* logger = nullptr;
    bool known = true;
    std::vector<Host> const present = hosts();
    for (Host const& host : present) known = known && host.abi() == kAbi;
    if (known && loggerFinder() != nullptr) logger = loggerFinder()->findLogger();
    if (known && logger == nullptr && !present.empty()) {
        auto* getLogger = present.front().symbol<nvinfer1::ILogger*()>("getLogger");
        if (getLogger != nullptr) logger = getLogger();
    }
    if (logger != nullptr) {
        logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
    } else {
        std::fprintf(stderr, "%s\n", message.c_str());
    }
}

inline std::vector<nvinfer1::IPluginCreatorInterface*>& creators() {
    static std::vector<nvinfer1::IPluginCreatorInterface*> list;
    return list;
}

struct SelfRegistered {
    nvinfer1::IPluginRegistry* registry;
    nvinfer1::IPluginCreatorInterface* creator;
};

inline std::vector<SelfRegistered>& selfRegistered() {
    static std::vector<SelfRegistered> list;
    return list;
}

// Tools may open this library before TensorRT itself (Polygraphy does). Then the TensorRT that the
// loader finds by name is opened here, once; the tool's own import gets the same copy.
inline void openHost() {
    static bool const opened = [] {
        if (!hosts().empty()) return true;
        std::string const enterprise = "libnvinfer.so." + std::to_string(kAbi);
        dlopen(enterprise.c_str(), RTLD_LAZY | RTLD_LOCAL);
        if (kAbi == 11) dlopen("libtensorrt_rtx.so.1", RTLD_LAZY | RTLD_LOCAL);
        if (hosts().empty()) {
            logError("visionllm plugins: opened without a TensorRT in the process, and the loader "
                     "finds no " + enterprise + ": nothing is registered. Import TensorRT first, "
                     "or put the folder of its libraries on LD_LIBRARY_PATH.");
        }
        return true;
    }();
    static_cast<void>(opened);
}

inline void registerWithHosts(nvinfer1::IPluginCreatorInterface& creator) {
    openHost();
    for (Host const& host : hosts()) {
        if (host.abi() != kAbi) {
            static bool told = false;
            if (!told) {
                logError("visionllm plugins: built with headers of TensorRT " +
                    std::to_string(NV_TENSORRT_MAJOR) + "; '" + host.path +
                    "' has another registry, so opening this library registers nothing. Use "
                    "IPluginRegistry::loadLibrary, or build it with that TensorRT's headers.");
            }
            told = true;
            continue;
        }
        auto* getRegistry = host.symbol<nvinfer1::IPluginRegistry*()>("getPluginRegistry");
        auto* registry = getRegistry == nullptr ? nullptr : getRegistry();
        if (registry == nullptr || !registry->registerCreator(creator, kNamespace)) continue;
        selfRegistered().push_back({registry, &creator});
        // The registry now points into this library: never unmap it, whoever closes it.
        Dl_info self{};
        if (dladdr(&selfRegistered(), &self) != 0) {
            dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
        }
    }
}

// Before a host takes the creators by itself: a second creator of one name would be refused, and
// loadLibrary with it.
inline void undoSelfRegistration() {
    for (SelfRegistered const& entry : selfRegistered()) {
        entry.registry->deregisterCreator(*entry.creator);
    }
    selfRegistered().clear();
}

inline std::string text(nvinfer1::Dims const& dims) {
    std::string result = "(";
    for (int32_t i = 0; i < dims.nbDims; ++i) {
        result += (i == 0 ? "" : ", ") + std::to_string(dims.d[i]);
    }
    return result + ")";
}

// The ports of an operator and everything that can be said about them.
template <typename Op>
struct Ports {
    static constexpr int32_t kCount = Op::kInputs + Op::kOutputs;

    static bool fail(std::string const& message) {
        logError(std::string(Op::kName) + ": " + message);
        return false;
    }

    static bool checkCounts(int32_t inputs, int32_t outputs) {
        if (inputs == Op::kInputs && outputs == Op::kOutputs) return true;
        return fail("expected " + std::to_string(Op::kInputs) + " inputs and " +
            std::to_string(Op::kOutputs) + " outputs, got " + std::to_string(inputs) + " and " +
            std::to_string(outputs) + ". Export the graph again.");
    }

    // The combination whose first `count` types are these, or -1.
    template <typename TypeAt>
    static int32_t combination(int32_t count, TypeAt typeAt) {
        for (int32_t c = 0; c < kCombinations; ++c) {
            bool same = true;
            for (int32_t p = 0; p < count; ++p) same = same && typeAt(p) == Op::kPorts[p].types[c];
            if (same) return c;
        }
        return -1;
    }

    // Where a letter stands first among the inputs; false for a letter that no input has.
    static bool find(char const* letter, int32_t& port, int32_t& axis) {
        for (port = 0; port < Op::kInputs; ++port) {
            for (axis = 0; axis < Op::kPorts[port].rank(); ++axis) {
                if (std::strcmp(Op::kPorts[port].axes[axis], letter) == 0) return true;
            }
        }
        return false;
    }

    static bool isFixed(char const* axis) { return axis[0] >= '0' && axis[0] <= '9'; }

    // Ranks, fixed sizes and equal letters; `size(port, axis)` is negative where it is not known.
    template <typename RankOf, typename SizeOf>
    static bool checkSizes(int32_t count, RankOf rankOf, SizeOf sizeOf) {
        for (int32_t p = 0; p < count; ++p) {
            Port const& port = Op::kPorts[p];
            if (rankOf(p) != port.rank()) {
                return fail(std::string("'") + port.name + "' expected rank " +
                    std::to_string(port.rank()) + ", got " + std::to_string(rankOf(p)) +
                    ". Export the graph again.");
            }
            for (int32_t a = 0; a < port.rank(); ++a) {
                int64_t const got = sizeOf(p, a);
                int32_t fromPort = p;
                int32_t fromAxis = a;
                int64_t wanted = got;
                if (isFixed(port.axes[a])) {
                    wanted = std::atoi(port.axes[a]);
                } else if (find(port.axes[a], fromPort, fromAxis) && fromPort < count) {
                    wanted = sizeOf(fromPort, fromAxis);
                }
                if (got >= 0 && wanted >= 0 && got != wanted) {
                    return fail(std::string("'") + port.name + "' axis " + std::to_string(a) +
                        " (" + port.axes[a] + ") expected " + std::to_string(wanted) + ", got " +
                        std::to_string(got) + ". Check the shapes of the node's inputs.");
                }
            }
        }
        return true;
    }
};

template <typename Op>
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
public:
    using DynamicDesc = nvinfer1::DynamicPluginTensorDesc;
    using Desc = nvinfer1::PluginTensorDesc;
    using Checks = Ports<Op>;

    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    nvinfer1::IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(); }

    char const* getPluginName() const noexcept override { return Op::kName; }
    char const* getPluginVersion() const noexcept override { return kVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }

    int32_t getNbOutputs() const noexcept override { return Op::kOutputs; }

    int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs,
        nvinfer1::DataType const* inputTypes, int32_t nbInputs) const noexcept override {
        if (!Checks::checkCounts(nbInputs, nbOutputs)) return -1;
        int32_t const c = Checks::combination(nbInputs, [&](int32_t p) { return inputTypes[p]; });
        if (c < 0) {
            std::string got;
            for (int32_t p = 0; p < nbInputs; ++p) {
                got += " " + std::to_string(static_cast<int32_t>(inputTypes[p]));
            }
            Checks::fail("no supported combination of input types, got DataTypes" + got +
                ". Cast the inputs as the operator's table says.");
            return -1;
        }
        for (int32_t o = 0; o < nbOutputs; ++o) {
            outputTypes[o] = Op::kPorts[Op::kInputs + o].types[c];
        }
        return 0;
    }

    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
        nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
        nvinfer1::IExprBuilder& builder) noexcept override {
        if (!Checks::checkCounts(nbInputs, nbOutputs)) return -1;
        auto const sizeOf = [&](int32_t p, int32_t a) -> int64_t {
            return inputs[p].d[a]->isConstant() ? inputs[p].d[a]->getConstantValue() : -1;
        };
        auto const rankOf = [&](int32_t p) { return inputs[p].nbDims; };
        if (!Checks::checkSizes(nbInputs, rankOf, sizeOf)) return -1;
        for (int32_t o = 0; o < nbOutputs; ++o) {
            Port const& port = Op::kPorts[Op::kInputs + o];
            outputs[o].nbDims = port.rank();
            for (int32_t a = 0; a < port.rank(); ++a) {
                int32_t p = 0;
                int32_t axis = 0;
                if (Checks::isFixed(port.axes[a])) {
                    outputs[o].d[a] = builder.constant(std::atoi(port.axes[a]));
                } else if (Checks::find(port.axes[a], p, axis)) {
                    outputs[o].d[a] = inputs[p].d[axis];
                } else {
                    return -1;
                }
            }
        }
        return 0;
    }

    bool supportsFormatCombination(int32_t pos, DynamicDesc const* inOut, int32_t nbInputs,
        int32_t nbOutputs) noexcept override {
        if (!Checks::checkCounts(nbInputs, nbOutputs)) return false;
        if (inOut[pos].desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
        auto const typeAt = [&](int32_t p) { return inOut[p].desc.type; };
        return Checks::combination(pos + 1, typeAt) >= 0;
    }

    int32_t configurePlugin(DynamicDesc const* in, int32_t nbInputs, DynamicDesc const* out,
        int32_t nbOutputs) noexcept override {
        if (!Checks::checkCounts(nbInputs, nbOutputs)) return -1;
        auto const desc = [&](int32_t p) -> Desc const& {
            return p < nbInputs ? in[p].desc : out[p - nbInputs].desc;
        };
        auto const rankOf = [&](int32_t p) { return desc(p).dims.nbDims; };
        auto const sizeOf = [&](int32_t p, int32_t a) -> int64_t { return desc(p).dims.d[a]; };
        return Checks::checkSizes(Checks::kCount, rankOf, sizeOf) ? 0 : -1;
    }

    size_t getWorkspaceSize(DynamicDesc const*, int32_t, DynamicDesc const*,
        int32_t) const noexcept override {
        return 0;
    }

    int32_t onShapeChange(Desc const* in, int32_t nbInputs, Desc const* out,
        int32_t nbOutputs) noexcept override {
        if (!Checks::checkCounts(nbInputs, nbOutputs)) return -1;
        auto const desc = [&](int32_t p) -> Desc const& {
            return p < nbInputs ? in[p] : out[p - nbInputs];
        };
        auto const rankOf = [&](int32_t p) { return desc(p).dims.nbDims; };
        auto const sizeOf = [&](int32_t p, int32_t a) -> int64_t { return desc(p).dims.d[a]; };
        if (!Checks::checkSizes(Checks::kCount, rankOf, sizeOf)) return -1;
        mCombination = Checks::combination(Checks::kCount, [&](int32_t p) { return desc(p).type; });
        if (mCombination < 0) return Checks::fail("unsupported types at run time."), -1;
        return 0;
    }

    // Only launches: no allocation, no synchronisation, so that a CUDA graph can capture it.
    int32_t enqueue(Desc const* in, Desc const* out, void const* const* inputs,
        void* const* outputs, void*, cudaStream_t stream) noexcept override {
        if (mCombination < 0) {
            auto const typeAt = [&](int32_t p) {
                return p < Op::kInputs ? in[p].type : out[p - Op::kInputs].type;
            };
            mCombination = Checks::combination(Checks::kCount, typeAt);
            if (mCombination < 0) return Checks::fail("unsupported types at run time."), -1;
        }
        int32_t const status = Op::enqueue(Launch{mCombination, in, out, inputs, outputs, stream});
        if (status != 0) {
            Checks::fail("launch for input '" + std::string(Op::kPorts[0].name) + "' of shape " +
                text(in[0].dims) + " failed with CUDA status " + std::to_string(status) + " (" +
                cudaGetErrorString(static_cast<cudaError_t>(status)) +
                "). Check that the library was built for this GPU.");
        }
        return status;
    }

    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
        return clone();
    }

    // No operator has attributes that a kernel needs, so an engine stores none.
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        return &mFields;
    }

private:
    int32_t mCombination = -1;
    nvinfer1::PluginFieldCollection mFields{0, nullptr};
};

template <typename Op>
class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    nvinfer1::IPluginV3* createPlugin(char const*, nvinfer1::PluginFieldCollection const*,
        nvinfer1::TensorRTPhase) noexcept override {
        return new (std::nothrow) Plugin<Op>();
    }
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &mFields; }
    char const* getPluginName() const noexcept override { return Op::kName; }
    char const* getPluginVersion() const noexcept override { return kVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    nvinfer1::PluginFieldCollection mFields{0, nullptr};
};

// One static object per operator: lists the creator and hands it to the hosts already there.
template <typename Op>
class Registration {
public:
    Registration() {
        creators().push_back(&mCreator);
        registerWithHosts(mCreator);
    }

private:
    Creator<Op> mCreator;
};

}  // namespace visionllm
