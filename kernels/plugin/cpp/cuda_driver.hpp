// The CUDA driver, as far as the plugin needs it. It is opened when the first kernel is launched, so that engines can
// be built on machines without a driver.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "launch_recipe.hpp"

namespace framert {

class Driver {
public:
    Driver() {
        library_ = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (library_ == nullptr) throw std::runtime_error("there is no CUDA driver (libcuda.so.1)");
    }

    // Returns the compute capability of the current context's device, such as "sm_89".
    std::string target() const {
        constexpr int kMajor = 75, kMinor = 76;  // CUdevice_attribute
        int device = 0, major = 0, minor = 0;
        call("cuCtxGetDevice", &device);
        call("cuDeviceGetAttribute", &major, kMajor, device);
        call("cuDeviceGetAttribute", &minor, kMinor, device);
        return "sm_" + std::to_string(major) + std::to_string(minor);
    }

    // Returns the handle of the current context.
    void* context() const {
        void* current = nullptr;
        call("cuCtxGetCurrent", &current);
        return current;
    }

    template <class... Values>
    void call(char const* name, Values... values) const {
        using Function = int (*)(Values...);
        auto const function = reinterpret_cast<Function>(dlsym(library_, name));
        if (function == nullptr) throw std::runtime_error(std::string("the CUDA driver has no ") + name);
        if (int const code = function(values...))
            throw std::runtime_error(std::string("the CUDA driver refuses ") + name + " (error " +
                                     std::to_string(code) + ")");
    }

private:
    void* library_ = nullptr;  // never closed: the driver stays for the life of the process
};

// A kernel in the context that was current when it was made.
class Kernel {
public:
    explicit Kernel(std::shared_ptr<Recipe const> recipe) : kept_(std::move(recipe)), recipe_(*kept_) {
        constexpr int kDefaultShared = 48 << 10;  // bytes that a kernel may use without asking
        constexpr int kMaxDynamicSharedSize = 8;  // CUfunction_attribute
        driver_.call("cuModuleLoadData", &module_, static_cast<void const*>(recipe_.image.c_str()));
        driver_.call("cuModuleGetFunction", &function_, module_, recipe_.entry.c_str());
        auto const shared = static_cast<int>(recipe_.shared_memory);
        if (shared > kDefaultShared) driver_.call("cuFuncSetAttribute", function_, kMaxDynamicSharedSize, shared);
    }

    ~Kernel() {
        try {
            driver_.call("cuModuleUnload", module_);
        } catch (std::exception const&) {  // the context is gone, and the module with it
        }
    }

    Kernel(Kernel const&) = delete;
    Kernel& operator=(Kernel const&) = delete;

    void launch(std::vector<Sizes> const& inputs, void const* const* input, void* const* output, void* workspace,
                void* stream) const {
        auto const grid = blocks(recipe_, inputs);
        auto values = arguments(recipe_, inputs, input, output, workspace);
        std::vector<void*> addresses;
        for (auto& value : values) addresses.push_back(&value);
        auto const word = [](std::int64_t value) { return static_cast<unsigned>(value); };
        driver_.call("cuLaunchKernel", function_, word(grid[0]), word(grid[1]), word(grid[2]), word(recipe_.threads),
                     1U, 1U, word(recipe_.shared_memory), stream, addresses.data(), static_cast<void**>(nullptr));
    }

private:
    Driver driver_;
    std::shared_ptr<Recipe const> kept_;
    Recipe const& recipe_;
    void *module_ = nullptr, *function_ = nullptr;
};

// Returns the kernel of a recipe in the current context. Every layer of every execution context has a plugin of its own,
// and those of one kernel share it.
inline std::shared_ptr<Kernel const> loaded(std::shared_ptr<Recipe const> recipe) {
    static std::mutex mutex;
    static std::map<std::tuple<void*, std::string, std::string>, std::weak_ptr<Kernel const>> kernels;
    std::lock_guard<std::mutex> const alone(mutex);
    auto& known = kernels[{Driver().context(), recipe->entry, recipe->image}];
    auto kernel = known.lock();
    if (kernel == nullptr) known = kernel = std::make_shared<Kernel const>(std::move(recipe));
    return kernel;
}

}  // namespace framert
