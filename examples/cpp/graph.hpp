// What the step loop asks of whatever runs the graphs of a bundle.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "request.hpp"

namespace framert {

class Graph {
public:
    virtual ~Graph() = default;
    virtual std::vector<std::string> inputs() const = 0;
    virtual std::vector<std::string> outputs() const = 0;
    // Give an input a value, which it keeps for all runs until it gets another.
    virtual void set(const std::string& input, const Array& value) = 0;
    // Give an input the value that an output had in the last run; on a device nothing is copied.
    virtual void carry(const std::string& output, const std::string& input) = 0;
    virtual void run() = 0;
    // The value of an output in the last run.
    virtual Array get(const std::string& output) = 0;
};

// Makes the graph of a name of the bundle: "text_encoder", "vae_encoder", "conditioner", "denoiser", "vae_decoder".
using Open = std::function<std::unique_ptr<Graph>(const std::string&)>;

}  // namespace framert
