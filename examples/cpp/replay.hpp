// Run a compiled request: graphs and the file, and nothing else.
#pragma once

#include <vector>

#include "graph.hpp"

namespace framert {

// A generated frame. latents: (channels, h, w). pixels: (height, width, 3) in 0..1; empty for a frame of rays.
struct Frame {
    int request;
    int frame;
    Array latents;
    Array pixels;
};

// Graphs are opened one after another and closed before the next, so that a small device never holds two.
// Throws std::runtime_error if the request does not fit the graphs or the model produced NaN or infinity.
std::vector<Frame> replay(const Request& request, const Open& open);

}  // namespace framert
