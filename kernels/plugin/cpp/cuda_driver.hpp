// The CUDA driver, as far as the plugin needs it. It is opened when the first kernel is launched, so that engines can
// be built on machines without a driver.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <stdexcept>
#include <string>
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
    explicit Kernel(Recipe const& recipe) : recipe_(recipe) {
        constexpr int kDefaultShared = 48 << 10;  // bytes that a kernel may use without asking
        constexpr int kMaxDynamicSharedSize = 8;  // CUfunction_attribute
        driver_.call("cuModuleLoadData", &module_, static_cast<void const*>(recipe.image.c_str()));
        driver_.call("cuModuleGetFunction", &function_, module_, recipe.entry.c_str());
        auto const shared = static_cast<int>(recipe.shared_memory);
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
    Recipe const& recipe_;
    void *module_ = nullptr, *function_ = nullptr;
};

}  // namespace framert
