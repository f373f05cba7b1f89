// Run a compiled request on the engines of a bundle: run_request ENGINES REQUEST OUT.png [PLUGIN.so]
#include <exception>
#include <iostream>

#include "picture.hpp"
#include "replay.hpp"
#include "tensorrt_graph.hpp"

namespace {

std::string numbered(const std::string& path, size_t number, size_t count) {
    const size_t dot = path.rfind('.');
    if (count == 1 || dot == std::string::npos) return path;
    return path.substr(0, dot) + "-" + std::to_string(number) + path.substr(dot);
}

void run(const std::string& folder, const std::string& file, const std::string& out, const char* plugin) {
    const framert::Request request = framert::Request::read(file);
    request.check_bundle(folder + "/manifest.json");
    framert::Log log;
    const std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(log));
    if (!runtime) throw std::runtime_error("TensorRT cannot start here; is there a GPU?");
    if (plugin != nullptr && runtime->getPluginRegistry().loadLibrary(plugin) == nullptr)
        throw std::runtime_error(std::string("cannot load the plugin ") + plugin);
    std::vector<framert::Array> pictures;
    for (framert::Frame& frame : framert::replay(request, framert::open_engines(*runtime, folder)))
        if (!frame.pixels.shape.empty()) pictures.push_back(std::move(frame.pixels));
    for (size_t number = 0; number < pictures.size(); ++number) {
        const std::string path = numbered(out, number, pictures.size());
        framert::write_picture(path, pictures[number]);
        std::cout << path << '\n';
    }
}

}  // namespace

int main(int count, char** words) {
    if (count != 4 && count != 5) {
        std::cerr << "usage: run_request ENGINES REQUEST OUT.png [PLUGIN.so]\n";
        return 2;
    }
    try {
        run(words[1], words[2], words[3], count == 5 ? words[4] : nullptr);
    } catch (const std::exception& error) {
        std::cerr << "run_request: error: " << error.what() << '\n';
        return 1;
    }
    return 0;
}
