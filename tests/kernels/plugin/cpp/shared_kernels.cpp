// Loads the kernel of a recipe as several layers' plugins do, and prints how often the driver loaded and gave back.
#include <dlfcn.h>

#include <iostream>

#include "cuda_driver.hpp"

int main() {
    using namespace framert;
    void* const cuda = dlopen("libcuda.so.1", RTLD_NOW);
    if (cuda == nullptr) return 2;
    auto const count = [cuda](char const* name) { return *static_cast<int*>(dlsym(cuda, name)); };
    auto const tell = [&] { std::cout << count("loads") << ' ' << count("unloads") << ' ' << count("launches") << '\n'; };
    Recipe plain;
    plain.entry = "kernel";
    plain.image = "image";
    plain.grid = {"1", "1", "1"};
    auto const made = [&plain] { return std::make_shared<Recipe const>(plain); };
    {
        auto const first = loaded(made()), second = loaded(made());
        second->launch({}, nullptr, nullptr, nullptr, nullptr);
        tell();
        plain.image = "another";
        auto const other = loaded(made());
        plain.image = "image";
        *static_cast<std::size_t*>(dlsym(cuda, "current")) = 2;
        auto const elsewhere = loaded(made());
        tell();
    }
    tell();
    loaded(made())->launch({}, nullptr, nullptr, nullptr, nullptr);
    tell();
}
