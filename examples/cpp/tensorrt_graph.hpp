// Graphs as TensorRT engines. Needs TensorRT's and CUDA's headers, which the rest does not.
#pragma once

#include <NvInferRuntime.h>

#include "graph.hpp"

namespace framert {

class Log : public nvinfer1::ILogger {
    void log(Severity severity, const char* message) noexcept override;
};

// Returns a function that loads FOLDER/NAME.engine. ``runtime`` must outlive what it returns.
Open open_engines(nvinfer1::IRuntime& runtime, const std::string& folder);

}  // namespace framert
