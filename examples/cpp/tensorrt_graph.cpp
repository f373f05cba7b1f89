#include "tensorrt_graph.hpp"

#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <iostream>

namespace framert {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// A file, mapped: a copy of an engine in host memory would double what loading it takes, and a Jetson has one memory.
class Mapped {
public:
    explicit Mapped(const std::string& path) {
        const int file = ::open(path.c_str(), O_RDONLY);
        struct stat status {};
        if (file >= 0 && ::fstat(file, &status) == 0 && status.st_size > 0) {
            size_ = static_cast<size_t>(status.st_size);
            data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
        }
        if (file >= 0) ::close(file);
        if (data_ == MAP_FAILED) throw std::runtime_error("cannot read " + path);
    }
    Mapped(const Mapped&) = delete;
    Mapped& operator=(const Mapped&) = delete;
    ~Mapped() { ::munmap(data_, size_); }

    const void* data() const { return data_; }
    size_t size() const { return size_; }

private:
    void* data_ = MAP_FAILED;
    size_t size_ = 0;
};

// Device memory that only grows. cudaFree waits for runs that still use it.
class Buffer {
public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { cudaFree(data_); }

    void* reserve(size_t bytes) {
        if (bytes > bytes_ || data_ == nullptr) {
            cudaFree(data_);
            data_ = nullptr;
            bytes_ = bytes > 0 ? bytes : 1;  // an empty tensor needs an address too
            check(cudaMalloc(&data_, bytes_), "cudaMalloc");
        }
        return data_;
    }
    void swap(Buffer& other) {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }
    void* data() const { return data_; }

private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    Buffer buffer;
};

std::string word(DataType type, const std::string& name) {
    if (type == DataType::kFLOAT) return "F32";
    if (type == DataType::kINT32) return "I32";
    if (type == DataType::kINT64) return "I64";
    throw std::runtime_error(name + " has a type that is neither fp32 nor an integer");
}

size_t bytes_of(const Tensor& tensor) {
    size_t bytes = tensor.dtype == "I64" ? 8 : 4;
    for (int64_t side : tensor.shape) bytes *= static_cast<size_t>(side);
    return bytes;
}

class Engine : public Graph {
public:
    Engine(nvinfer1::IRuntime& runtime, const std::string& path) {
        const Mapped plan(path);
        engine_.reset(runtime.deserializeCudaEngine(plan.data(), plan.size()));
        if (!engine_) throw std::runtime_error("TensorRT refuses " + path + ": built for another GPU or version, which building it here "
                                     "mends, or with a plugin whose library was not given");
        context_.reset(engine_->createExecutionContext());
        if (!context_) throw std::runtime_error("no memory to run " + path);
        check(cudaStreamCreate(&stream_), "cudaStreamCreate");
        for (int32_t index = 0; index < engine_->getNbIOTensors(); ++index) {
            const std::string name = engine_->getIOTensorName(index);
            const bool input = engine_->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
            (input ? inputs_ : outputs_).push_back(name);
            tensors_[name].dtype = word(engine_->getTensorDataType(name.c_str()), name);
        }
    }
    ~Engine() override {
        cudaStreamSynchronize(stream_);
        cudaStreamDestroy(stream_);
    }

    std::vector<std::string> inputs() const override { return inputs_; }
    std::vector<std::string> outputs() const override { return outputs_; }

    void set(const std::string& input, const Array& value) override {
        Tensor& tensor = tensors_.at(input);
        if (value.dtype != tensor.dtype)
            throw std::runtime_error(input + " is " + value.dtype + " in the request, " + tensor.dtype + " in the engine");
        tensor.shape = value.shape;
        // From pageable memory this returns when the value was copied aside: the caller may let go of it.
        check(cudaMemcpyAsync(tensor.buffer.reserve(value.bytes.size()), value.bytes.data(), value.bytes.size(),
                              cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    }
    void carry(const std::string& output, const std::string& input) override {
        tensors_.at(output).buffer.swap(tensors_.at(input).buffer);
        tensors_.at(input).shape = tensors_.at(output).shape;
    }
    void run() override {
        choose_profile();
        for (const std::string& name : inputs_) {
            const Tensor& tensor = tensors_.at(name);
            if (!context_->setInputShape(name.c_str(), dims(tensor.shape)) ||
                !context_->setTensorAddress(name.c_str(), tensor.buffer.data()))
                throw std::runtime_error("TensorRT refuses input " + name);
        }
        for (const std::string& name : outputs_) {
            Tensor& tensor = tensors_.at(name);
            const Dims made = context_->getTensorShape(name.c_str());
            tensor.shape.assign(made.d, made.d + made.nbDims);
            if (!context_->setTensorAddress(name.c_str(), tensor.buffer.reserve(bytes_of(tensor))))
                throw std::runtime_error("TensorRT refuses output " + name);
        }
        if (!context_->enqueueV3(stream_)) throw std::runtime_error("TensorRT failed in a run");
    }
    Array get(const std::string& output) override {
        const Tensor& tensor = tensors_.at(output);
        Array array{tensor.dtype, tensor.shape, std::vector<unsigned char>(bytes_of(tensor))};
        check(cudaMemcpyAsync(array.bytes.data(), tensor.buffer.data(), array.bytes.size(), cudaMemcpyDeviceToHost,
                              stream_), "a run");
        check(cudaStreamSynchronize(stream_), "a run");
        return array;
    }

private:
    static Dims dims(const std::vector<int64_t>& shape) {
        Dims made{};
        made.nbDims = static_cast<int32_t>(shape.size());
        for (size_t side = 0; side < shape.size(); ++side) made.d[side] = shape[side];
        return made;
    }
    bool fits(const std::string& name, int32_t profile) const {
        const auto& shape = tensors_.at(name).shape;
        const Dims least = engine_->getProfileShape(name.c_str(), profile, nvinfer1::OptProfileSelector::kMIN);
        const Dims most = engine_->getProfileShape(name.c_str(), profile, nvinfer1::OptProfileSelector::kMAX);
        if (least.nbDims != static_cast<int32_t>(shape.size())) return false;
        for (int32_t side = 0; side < least.nbDims; ++side)
            if (shape[static_cast<size_t>(side)] < least.d[side] || shape[static_cast<size_t>(side)] > most.d[side])
                return false;
        return true;
    }
    // The first profile that takes these shapes: the builder puts the smallest first.
    void choose_profile() {
        for (int32_t profile = 0; profile < engine_->getNbOptimizationProfiles(); ++profile) {
            bool all = true;
            for (const std::string& name : inputs_) all = all && fits(name, profile);
            if (!all) continue;
            if (profile != profile_ && !context_->setOptimizationProfileAsync(profile, stream_))
                throw std::runtime_error("TensorRT refuses profile " + std::to_string(profile));
            profile_ = profile;
            return;
        }
        throw std::runtime_error("no profile of the engine takes this request; build engines for more tokens");
    }

    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    cudaStream_t stream_ = nullptr;
    int32_t profile_ = 0;  // what a new context has
    std::vector<std::string> inputs_, outputs_;
    std::map<std::string, Tensor> tensors_;
};

}  // namespace

void Log::log(Severity severity, const char* message) noexcept {
    if (severity <= Severity::kWARNING) std::cerr << "TensorRT: " << message << '\n';
}

Open open_engines(nvinfer1::IRuntime& runtime, const std::string& folder) {
    return [&runtime, folder](const std::string& name) -> std::unique_ptr<Graph> {
        return std::make_unique<Engine>(runtime, folder + "/" + name + ".engine");
    };
}

}  // namespace framert
