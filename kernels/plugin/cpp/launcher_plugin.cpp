// KernelLauncher: a TensorRT plugin that launches whatever kernel its node brings, without Python.
//
// Works with TensorRT 10.3 to 11 and TensorRT-RTX 1.x. Load it before engines are built or read: IPluginRegistry's
// loadLibrary, dlopen in an application that links TensorRT, or ONNX Runtime's trt_extra_plugin_lib_paths.
#include <NvInferRuntime.h>

#include <cstdio>
#include <map>
#include <memory>

#include "cuda_driver.hpp"
#include "launch_recipe.hpp"

// Weak: where the library is opened by loadLibrary alone, nobody has to provide it.
extern "C" nvinfer1::IPluginRegistry* getPluginRegistry() noexcept __attribute__((weak));

namespace framert {
namespace {

using namespace nvinfer1;

constexpr char const *kName = "KernelLauncher", *kVersion = "1", *kNamespace = "framert", *kField = "kernels";

ILoggerFinder* logger_finder = nullptr;  // given by TensorRT when it loads the library

void report(char const* name, std::exception const& error) {
    auto const text = std::string(kName) + " (" + name + "): " + error.what();
    if (auto* const logger = logger_finder == nullptr ? nullptr : logger_finder->findLogger())
        logger->log(ILogger::Severity::kERROR, text.c_str());
    else
        std::fprintf(stderr, "%s\n", text.c_str());
}

DataType type_of(std::string const& name) {
    static std::map<std::string, DataType> const known{{"fp32", DataType::kFLOAT},
                                                       {"fp16", DataType::kHALF},
                                                       {"bf16", DataType::kBF16},
                                                       {"i32", DataType::kINT32},
                                                       {"i8", DataType::kINT8}};
    auto const found = known.find(name);
    if (found == known.end()) throw std::invalid_argument("the type '" + name + "' is not known");
    return found->second;
}

Sizes sizes_of(nvinfer1::Dims const& dims) { return Sizes(dims.d, dims.d + dims.nbDims); }

// Expressions of TensorRT's, for shapes that are known only when the engine runs.
struct Symbols {
    DimsExprs const* inputs;
    int count;
    IExprBuilder& builder;
    using Value = IDimensionExpr const*;

    Value number(std::int64_t value) { return builder.constant(value); }
    Value size(int input, int axis) const {
        if (input >= count || axis >= inputs[input].nbDims) throw std::invalid_argument("an output names no input");
        return inputs[input].d[axis];
    }
    Value apply(char sign, Value a, Value b) {
        if (sign == '%') return apply('-', a, apply('*', apply('/', a, b), b));
        auto const operation = sign == '+'   ? DimensionOperation::kSUM
                               : sign == '-' ? DimensionOperation::kSUB
                               : sign == '*' ? DimensionOperation::kPROD
                                             : DimensionOperation::kFLOOR_DIV;
        return builder.operation(operation, *a, *b);
    }
};

class Launcher : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
public:
    Launcher(std::string field, std::string name) : Launcher(std::make_shared<std::string>(std::move(field)), name) {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        if (type == PluginCapabilityType::kBUILD) return static_cast<IPluginV3OneBuild*>(this);
        if (type == PluginCapabilityType::kRUNTIME) return static_cast<IPluginV3OneRuntime*>(this);
        return static_cast<IPluginV3OneCore*>(this);
    }
    IPluginV3* clone() noexcept override {
        return guarded<IPluginV3*>(nullptr, [&] { return new Launcher(field_, name_); });
    }
    AsciiChar const* getPluginName() const noexcept override { return kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

    // build

    std::int32_t getNbOutputs() const noexcept override { return static_cast<std::int32_t>(first().outputs.size()); }

    std::int32_t getOutputDataTypes(DataType* types, std::int32_t count, DataType const*,
                                    std::int32_t) const noexcept override {
        return guarded(1, [&] {
            for (std::int32_t place = 0; place < count; ++place) types[place] = type_of(first().outputs.at(place).type);
            return 0;
        });
    }

    std::int32_t getOutputShapes(DimsExprs const* inputs, std::int32_t count, DimsExprs const*, std::int32_t,
                                 DimsExprs* outputs, std::int32_t output_count,
                                 IExprBuilder& builder) noexcept override {
        return guarded(1, [&] {
            Symbols symbols{inputs, count, builder};
            for (std::int32_t place = 0; place < output_count; ++place) {
                auto const& sizes = first().outputs.at(place).sizes;
                outputs[place].nbDims = static_cast<std::int32_t>(sizes.size());
                for (std::size_t axis = 0; axis < sizes.size(); ++axis)
                    outputs[place].d[axis] = Evaluator<Symbols::Value, Symbols>(sizes[axis], symbols).run();
            }
            return 0;
        });
    }

    bool supportsFormatCombination(std::int32_t place, DynamicPluginTensorDesc const* tensors, std::int32_t inputs,
                                   std::int32_t) noexcept override {
        return guarded(false, [&] {
            auto const& wanted = place < inputs ? first().inputs.at(place) : first().outputs.at(place - inputs);
            auto const& given = tensors[place].desc;
            return given.format == TensorFormat::kLINEAR && given.type == type_of(wanted.type);
        });
    }

    std::int32_t configurePlugin(DynamicPluginTensorDesc const* inputs, std::int32_t count,
                                 DynamicPluginTensorDesc const*, std::int32_t) noexcept override {
        return guarded(1, [&] {
            auto const largest = most(inputs, count);
            for (auto const& recipe : *recipes_) check(recipe, largest);
            return 0;
        });
    }

    std::size_t getWorkspaceSize(DynamicPluginTensorDesc const* inputs, std::int32_t count,
                                 DynamicPluginTensorDesc const*, std::int32_t) const noexcept override {
        return guarded<std::size_t>(0, [&] {
            std::int64_t bytes = 0;
            for (auto const& recipe : *recipes_) bytes = std::max(bytes, evaluate(recipe.workspace, most(inputs, count)));
            return static_cast<std::size_t>(bytes);
        });
    }

    // run

    std::int32_t onShapeChange(PluginTensorDesc const*, std::int32_t, PluginTensorDesc const*,
                               std::int32_t) noexcept override {
        return 0;
    }

    // Not first called while a CUDA graph is captured: TensorRT asks for one call before that, which loads the kernel.
    std::int32_t enqueue(PluginTensorDesc const* input_descriptions, PluginTensorDesc const*, void const* const* inputs,
                         void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        return guarded(1, [&] {
            std::vector<Sizes> sizes;
            for (std::size_t place = 0; place < first().inputs.size(); ++place)
                sizes.push_back(sizes_of(input_descriptions[place].dims));
            check(first(), sizes);
            if (kernel_ == nullptr) kernel_ = loaded({recipes_, &chosen(Driver().target())});
            kernel_->launch(sizes, inputs, outputs, workspace, stream);
            return 0;
        });
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        serialized_ = PluginField(kField, field_->data(), PluginFieldType::kUNKNOWN,
                                  static_cast<std::int32_t>(field_->size()));
        fields_.nbFields = 1;
        fields_.fields = &serialized_;
        return &fields_;
    }

private:
    Launcher(std::shared_ptr<std::string const> field, std::string name)
        : field_(std::move(field)),
          recipes_(std::make_shared<std::vector<Recipe> const>(parse(*field_))),
          name_(std::move(name)) {}

    Recipe const& first() const { return recipes_->front(); }  // recipes differ in their kernels alone

    static std::vector<Sizes> most(DynamicPluginTensorDesc const* inputs, std::int32_t count) {
        std::vector<Sizes> found;
        for (std::int32_t place = 0; place < count; ++place) found.push_back(sizes_of(inputs[place].max));
        return found;
    }

    Recipe const& chosen(std::string const& target) const {
        std::string held;
        for (auto const& recipe : *recipes_) {
            if (recipe.target == target) return recipe;
            held += (held.empty() ? "" : ", ") + recipe.target;
        }
        throw std::invalid_argument("the engine holds kernels for " + held + ", and this GPU is " + target +
                                    "; build it for that");
    }

    template <class Result, class Body>
    Result guarded(Result failure, Body const& body) const noexcept {
        try {
            return body();
        } catch (std::exception const& error) {
            report(name_.c_str(), error);
            return failure;
        }
    }

    std::shared_ptr<std::string const> field_;
    std::shared_ptr<std::vector<Recipe> const> recipes_;
    std::string name_;
    std::shared_ptr<Kernel const> kernel_;  // in the context of the first launch
    PluginField serialized_;
    PluginFieldCollection fields_;
};

class Creator : public IPluginCreatorV3One {
public:
    IPluginV3* createPlugin(AsciiChar const* name, PluginFieldCollection const* given, TensorRTPhase) noexcept override {
        try {
            for (std::int32_t place = 0; place < given->nbFields; ++place) {
                auto const& field = given->fields[place];
                if (std::string(kField) == field.name && field.data != nullptr)
                    return new Launcher(
                        std::string(static_cast<char const*>(field.data), static_cast<std::size_t>(field.length)), name);
            }
            throw std::invalid_argument("the node brings no kernels; build with framert build --attention library");
        } catch (std::exception const& error) {
            report(name, error);
            return nullptr;
        }
    }
    PluginFieldCollection const* getFieldNames() noexcept override { return &fields_; }
    AsciiChar const* getPluginName() const noexcept override { return kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    PluginField field_{kField, nullptr, PluginFieldType::kINT8, 0};
    PluginFieldCollection fields_{1, &field_};
};

Creator& creator() {
    static Creator only;
    return only;
}

// Registers where TensorRT is linked, so that dlopen is enough. loadLibrary registers what getCreators returns and fails
// if it is registered already; so getCreators takes this back.
class Registration {
public:
    Registration() : done_(getPluginRegistry != nullptr && getPluginRegistry()->registerCreator(creator(), kNamespace)) {}
    ~Registration() { undo(); }
    void undo() {
        if (done_) getPluginRegistry()->deregisterCreator(creator());
        done_ = false;
    }

private:
    bool done_;
} registration;

}  // namespace
}  // namespace framert

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    framert::logger_finder = finder;
}

extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(
    std::int32_t& count) {
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&framert::creator()};
    framert::registration.undo();
    count = 1;
    return creators;
}
