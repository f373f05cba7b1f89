// The example's step loop with graphs that call back into the test, and its pictures, as plain C functions.
#include <iostream>

#include "picture.hpp"
#include "replay.hpp"

namespace {

using framert::Array;

constexpr int kDepth = 8;

// One graph of the test: a number, and functions that take it.
struct Callbacks {
    int (*open)(const char* name);
    void (*close)(int graph);
    const char* (*names)(int graph, int outputs);  // separated by spaces
    void (*set)(int graph, const char* input, const char* dtype, int sides, const int64_t* shape, const void* values);
    void (*carry)(int graph, const char* output, const char* input);
    int (*run)(int graph);
    int (*shape)(int graph, const char* output, int64_t* shape);
    void (*get)(int graph, const char* output, void* values);
};

std::vector<std::string> words(const std::string& text) {
    std::vector<std::string> found;
    for (size_t begin = 0; begin < text.size();) {
        const size_t end = std::min(text.find(' ', begin), text.size());
        found.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return found;
}

class CallbackGraph : public framert::Graph {
public:
    CallbackGraph(const Callbacks& call, const std::string& name) : call_(call), graph_(call.open(name.c_str())) {}
    ~CallbackGraph() override { call_.close(graph_); }
    std::vector<std::string> inputs() const override { return words(call_.names(graph_, 0)); }
    std::vector<std::string> outputs() const override { return words(call_.names(graph_, 1)); }
    void set(const std::string& input, const Array& value) override {
        call_.set(graph_, input.c_str(), value.dtype.c_str(), static_cast<int>(value.shape.size()), value.shape.data(),
                  value.bytes.data());
    }
    void carry(const std::string& output, const std::string& input) override {
        call_.carry(graph_, output.c_str(), input.c_str());
    }
    void run() override {
        if (call_.run(graph_) != 0) throw std::runtime_error("a graph failed");
    }
    Array get(const std::string& output) override {
        int64_t shape[kDepth];
        const int sides = call_.shape(graph_, output.c_str(), shape);
        Array array = Array::make<float>("F32", {shape, shape + sides});
        call_.get(graph_, output.c_str(), array.bytes.data());
        return array;
    }

private:
    Callbacks call_;
    int graph_;
};

}  // namespace

extern "C" {

// Returns the number of frames, or -1 after a line on stderr; take() gets latents (0) or pixels (1) of each.
int replay_request(const char* request, const char* manifest, const Callbacks* call,
                   void (*take)(int request, int frame, int kind, int sides, const int64_t* shape, const float* values)) {
    try {
        const framert::Request read = framert::Request::read(request);
        read.check_bundle(manifest);
        const auto frames = framert::replay(read, [call](const std::string& name) -> std::unique_ptr<framert::Graph> {
            return std::make_unique<CallbackGraph>(*call, name);
        });
        for (const framert::Frame& frame : frames)
            for (int kind : {0, 1}) {
                const Array& array = kind == 0 ? frame.latents : frame.pixels;
                if (array.shape.empty()) continue;
                take(frame.request, frame.frame, kind, static_cast<int>(array.shape.size()), array.shape.data(),
                     array.values<float>());
            }
        return static_cast<int>(frames.size());
    } catch (const std::exception& error) {
        std::cerr << error.what() << std::endl;
        return -1;
    }
}

int save_picture(const char* path, int64_t height, int64_t width, const float* values) {
    try {
        framert::write_picture(path, Array::make<float>("F32", {height, width, 3}, values));
        return 0;
    } catch (const std::exception& error) {
        std::cerr << error.what() << std::endl;
        return -1;
    }
}
}
