// A stand-in for TensorRT's header, for tests only: the part of its binary interface that our
// plugins touch, declared by ourselves in the order in which the functions stand in the tables.
// What proves it right is that the installed TensorRT-RTX runs a library compiled against it. Never
// build a library for use with it: that takes the headers of the SDK.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <new>

#include "NvInferVersion.h"

namespace nvinfer1 {

enum class APILanguage : int32_t { kCPP = 0 };
enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT32 = 3, kBF16 = 7 };
enum class TensorFormat : int32_t { kLINEAR = 0 };
enum class TensorRTPhase : int32_t { kBUILD = 0, kRUNTIME = 1 };
enum class PluginCapabilityType : int32_t { kCORE = 0, kBUILD = 1, kRUNTIME = 2 };

struct InterfaceInfo {
    char const* kind;
    int32_t major;
    int32_t minor;
};

struct Dims {
    int32_t nbDims;
    int64_t d[8];
};

struct PluginTensorDesc {
    Dims dims;
    DataType type;
    TensorFormat format;
    float scale;
};

struct DynamicPluginTensorDesc {
    PluginTensorDesc desc;
    Dims min, max, opt;
};

struct PluginFieldCollection {
    int32_t nbFields;
    void const* fields;
};

class IVersionedInterface {
public:
    virtual APILanguage getAPILanguage() const noexcept { return APILanguage::kCPP; }
    virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
    virtual ~IVersionedInterface() noexcept = default;
};

class ILogger : public IVersionedInterface {
public:
    enum class Severity : int32_t { kERROR = 1 };
    virtual void log(Severity, char const*) noexcept = 0;
};

class ILoggerFinder : public IVersionedInterface {
public:
    virtual ILogger* findLogger() = 0;
};

// Symbolic sizes hide behind a second object; the first one only has a destructor.
struct Table {
    virtual ~Table() = default;
};

struct DimensionExprTable : Table {
    virtual bool isConstant() const = 0;
    virtual int64_t getConstantValue() const = 0;
};

class IDimensionExpr {
public:
    bool isConstant() const { return mTable->isConstant(); }
    int64_t getConstantValue() const { return mTable->getConstantValue(); }

protected:
    virtual ~IDimensionExpr() = default;
    DimensionExprTable* mTable;
};

struct ExprBuilderTable : Table {
    virtual IDimensionExpr const* constant(int64_t) = 0;
};

class IExprBuilder {
public:
    IDimensionExpr const* constant(int64_t value) { return mTable->constant(value); }

protected:
    virtual ~IExprBuilder() = default;
    ExprBuilderTable* mTable;
};

struct DimsExprs {
    int32_t nbDims;
    IDimensionExpr const* d[8];
};

class IPluginResourceContext;

class IPluginCapability : public IVersionedInterface {};

class IPluginV3 : public IVersionedInterface {
public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN", 1, 0}; }
    virtual IPluginCapability* getCapabilityInterface(PluginCapabilityType) noexcept = 0;
    virtual IPluginV3* clone() noexcept = 0;
};

class IPluginV3OneCore : public IPluginCapability {
public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_CORE", 1, 0}; }
    virtual char const* getPluginName() const noexcept = 0;
    virtual char const* getPluginVersion() const noexcept = 0;
    virtual char const* getPluginNamespace() const noexcept = 0;
};

class IPluginV3OneBuild : public IPluginCapability {
public:
    using Desc = DynamicPluginTensorDesc const*;

    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_BUILD", 1, 0}; }
    virtual int32_t configurePlugin(Desc, int32_t, Desc, int32_t) noexcept = 0;
    virtual int32_t getOutputDataTypes(
        DataType*, int32_t, DataType const*, int32_t) const noexcept = 0;
    virtual int32_t getOutputShapes(DimsExprs const*, int32_t, DimsExprs const*, int32_t,
        DimsExprs*, int32_t, IExprBuilder&) noexcept = 0;
    virtual bool supportsFormatCombination(int32_t, Desc, int32_t, int32_t) noexcept = 0;
    virtual int32_t getNbOutputs() const noexcept = 0;
    virtual size_t getWorkspaceSize(Desc, int32_t, Desc, int32_t) const noexcept { return 0; }
    virtual int32_t getValidTactics(int32_t*, int32_t) noexcept { return 0; }
    virtual int32_t getNbTactics() noexcept { return 0; }
    virtual char const* getTimingCacheID() noexcept { return nullptr; }
    virtual int32_t getFormatCombinationLimit() noexcept { return 100; }
    virtual char const* getMetadataString() noexcept { return nullptr; }
};

class IPluginV3OneRuntime : public IPluginCapability {
public:
    using Desc = PluginTensorDesc const*;

    InterfaceInfo getInterfaceInfo() const noexcept override {
        return {"PLUGIN_V3ONE_RUNTIME", 1, 0};
    }
    virtual int32_t setTactic(int32_t) noexcept { return 0; }
    virtual int32_t onShapeChange(Desc, int32_t, Desc, int32_t) noexcept = 0;
    virtual int32_t enqueue(
        Desc, Desc, void const* const*, void* const*, void*, cudaStream_t) noexcept = 0;
    virtual IPluginV3* attachToContext(IPluginResourceContext*) noexcept = 0;
    virtual PluginFieldCollection const* getFieldsToSerialize() noexcept = 0;
};

class IPluginCreatorInterface : public IVersionedInterface {};

class IPluginCreatorV3One : public IPluginCreatorInterface {
public:
    InterfaceInfo getInterfaceInfo() const noexcept override {
        return {"PLUGIN CREATOR_V3ONE", 1, 0};
    }
    virtual IPluginV3* createPlugin(
        char const*, PluginFieldCollection const*, TensorRTPhase) noexcept = 0;
    virtual PluginFieldCollection const* getFieldNames() noexcept = 0;
    virtual char const* getPluginName() const noexcept = 0;
    virtual char const* getPluginVersion() const noexcept = 0;
    virtual char const* getPluginNamespace() const noexcept = 0;
};

class IPluginRegistry {
protected:
    virtual ~IPluginRegistry() = default;

public:
    virtual void setErrorRecorder(void*) noexcept = 0;
    virtual void* getErrorRecorder() const noexcept = 0;
    virtual bool isParentSearchEnabled() const = 0;
    virtual void setParentSearchEnabled(bool) = 0;
    virtual void* loadLibrary(char const*) noexcept = 0;
    virtual void deregisterLibrary(void*) noexcept = 0;
    virtual bool registerCreator(IPluginCreatorInterface&, char const*) noexcept = 0;
    virtual IPluginCreatorInterface* const* getAllCreators(int32_t*) const noexcept = 0;
    virtual IPluginCreatorInterface* getCreator(
        char const*, char const*, char const*) noexcept = 0;
    virtual bool deregisterCreator(IPluginCreatorInterface const&) noexcept = 0;
};

}  // namespace nvinfer1
