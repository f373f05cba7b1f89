// Pictures as files: .ppm, and .png without compression, so that no library is needed.
#pragma once

#include <string>

#include "request.hpp"

namespace framert {

// Writes (height, width, 3) float pixels in 0..1 as 8-bit RGB. Throws std::runtime_error if it cannot be written.
void write_picture(const std::string& path, const Array& pixels);

}  // namespace framert
