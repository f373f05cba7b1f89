// A CUDA driver that counts: what the launcher plugin calls of libcuda, with one context that can be changed.
#include <cstddef>

extern "C" {

int loads = 0, unloads = 0, launches = 0;
std::size_t current = 1;

int cuCtxGetCurrent(void** context) {
    *context = reinterpret_cast<void*>(current);
    return 0;
}
int cuModuleLoadData(void** module, void const*) {
    *module = reinterpret_cast<void*>(static_cast<std::size_t>(++loads));
    return 0;
}
int cuModuleGetFunction(void** function, void* module, char const*) {
    *function = module;
    return 0;
}
int cuModuleUnload(void*) { return ++unloads, 0; }
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuLaunchKernel(void* function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                   void**) {
    return function == nullptr ? 1 : (++launches, 0);
}
}
