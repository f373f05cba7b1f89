#include "picture.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>

namespace framert {
namespace {

void append_big(std::string& out, uint32_t value) {
    for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift);
}

uint32_t crc32(const std::string& data) {
    uint32_t crc = 0xFFFFFFFFU;
    for (unsigned char byte : data) {
        crc ^= byte;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0xEDB88320U & (0U - (crc & 1U)));
    }
    return ~crc;
}

std::string chunk(const std::string& kind, const std::string& data) {
    std::string out;
    append_big(out, static_cast<uint32_t>(data.size()));
    out += kind + data;
    append_big(out, crc32(kind + data));
    return out;
}

// A zlib stream of stored blocks.
std::string stored(const std::string& data) {
    std::string out = "\x78\x01";
    uint32_t low = 1, high = 0;  // Adler-32
    for (unsigned char byte : data) {
        low = (low + byte) % 65521;
        high = (high + low) % 65521;
    }
    for (size_t begin = 0; begin < data.size(); begin += 65535) {
        const size_t size = std::min<size_t>(65535, data.size() - begin);
        out += static_cast<char>(begin + size == data.size());
        for (size_t value : {size, ~size}) {
            out += static_cast<char>(value & 0xFF);
            out += static_cast<char>(value >> 8 & 0xFF);
        }
        out.append(data, begin, size);
    }
    append_big(out, high << 16 | low);
    return out;
}

std::string png(uint32_t width, uint32_t height, const std::string& rgb) {
    std::string head, rows;
    append_big(head, width);
    append_big(head, height);
    head += std::string("\x08\x02\x00\x00\x00", 5);  // 8 bits, RGB
    for (uint32_t row = 0; row < height; ++row) {
        rows += '\0';  // no filter
        rows.append(rgb, static_cast<size_t>(row) * width * 3, static_cast<size_t>(width) * 3);
    }
    return "\x89PNG\r\n\x1a\n" + chunk("IHDR", head) + chunk("IDAT", stored(rows)) + chunk("IEND", "");
}

}  // namespace

void write_picture(const std::string& path, const Array& pixels) {
    std::string rgb(pixels.count(), '\0');
    for (size_t i = 0; i < rgb.size(); ++i) {
        const float value = std::min(std::max(pixels.values<float>()[i], 0.0F), 1.0F);
        rgb[i] = static_cast<char>(static_cast<unsigned char>(std::nearbyint(value * 255.0F)));
    }
    const auto height = static_cast<uint32_t>(pixels.shape.at(0)), width = static_cast<uint32_t>(pixels.shape.at(1));
    const bool plain = path.size() > 4 && path.compare(path.size() - 4, 4, ".ppm") == 0;
    const std::string size = std::to_string(width) + " " + std::to_string(height);
    const std::string content = plain ? "P6\n" + size + "\n255\n" + rgb : png(width, height, rgb);
    std::ofstream stream(path, std::ios::binary);
    stream.write(content.data(), static_cast<std::streamsize>(content.size()));
    stream.flush();
    if (!stream) throw std::runtime_error("cannot write " + path);
}

}  // namespace framert
