// A compiled request: named arrays and texts of one safetensors file, see runtime/compiled/format.py for what each is.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace framert {

struct Array {
    std::string dtype;  // "F32", "I32" or "I64"
    std::vector<int64_t> shape;
    std::vector<unsigned char> bytes;  // row-major values

    template <typename Value>
    static Array make(const std::string& dtype, std::vector<int64_t> shape, const Value* values = nullptr) {
        Array array{dtype, std::move(shape), {}};
        array.bytes.resize(array.count() * sizeof(Value));
        if (values != nullptr) std::memcpy(array.bytes.data(), values, array.bytes.size());
        return array;
    }
    size_t count() const {
        size_t product = 1;
        for (int64_t side : shape) product *= static_cast<size_t>(side);
        return product;
    }
    template <typename Value>
    Value* values() { return reinterpret_cast<Value*>(bytes.data()); }
    template <typename Value>
    const Value* values() const { return reinterpret_cast<const Value*>(bytes.data()); }
};

class Request {
public:
    // Throws std::runtime_error if the file is missing, truncated, of another version or no compiled request.
    static Request read(const std::string& path);

    bool has(const std::string& name) const { return arrays.count(name) != 0; }
    const Array& at(const std::string& name) const {
        const auto found = arrays.find(name);
        if (found == arrays.end()) throw std::runtime_error("the request lacks " + name + "; compile it again");
        return found->second;
    }
    const std::string& text(const std::string& name) const {
        const auto found = metadata.find(name);
        if (found == metadata.end()) throw std::runtime_error("the request lacks " + name + "; compile it again");
        return found->second;
    }
    int number(const std::string& name) const { return std::stoi(text(name)); }

    // Throws unless a bundle's manifest.json names every file that the request was compiled for.
    void check_bundle(const std::string& manifest_path) const;

    std::map<std::string, Array> arrays;
    std::map<std::string, std::string> metadata;
};

}  // namespace framert
