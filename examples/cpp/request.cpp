#include "request.hpp"

#include <fstream>
#include <iterator>
#include <sstream>

namespace framert {
namespace {

constexpr size_t kHeaderLimit = 100000000;  // bytes, as the format defines it

// Reads the header of a safetensors file, which is JSON of one known form.
class Header {
public:
    Header(const char* begin, const char* end) : at_(begin), end_(end) {}

    void expect(char wanted) {
        if (peek() != wanted) fail();
        ++at_;
    }
    bool next(char more, char last) {  // after an item: whether there is another
        if (peek() == more) return ++at_, true;
        expect(last);
        return false;
    }
    bool empty(char last) {
        if (peek() != last) return false;
        return ++at_, true;
    }
    std::string string() {
        expect('"');
        std::string text;
        while (at_ < end_ && *at_ != '"') {
            if (*at_ == '\\' && ++at_ == end_) fail();
            text += *at_++;  // escapes matter in nothing that is used: names and numbers have none
        }
        expect('"');
        return text;
    }
    std::vector<int64_t> numbers() {
        std::vector<int64_t> found;
        expect('[');
        if (empty(']')) return found;
        do {
            int64_t value = 0;
            if (peek() < '0' || *at_ > '9') fail();
            for (; at_ < end_ && *at_ >= '0' && *at_ <= '9'; ++at_) {
                if (value > (INT64_MAX - 9) / 10) fail();
                value = value * 10 + (*at_ - '0');
            }
            found.push_back(value);
        } while (next(',', ']'));
        return found;
    }
    [[noreturn]] static void fail() { throw std::runtime_error("the request has a damaged header; compile it again"); }

private:
    char peek() {
        while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
        if (at_ == end_) fail();
        return *at_;
    }
    const char* at_;
    const char* end_;
};

size_t width_of(const std::string& dtype) {
    if (dtype == "F32" || dtype == "I32") return 4;
    if (dtype == "I64") return 8;
    Header::fail();
}

std::string whole_file(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    if (!stream) throw std::runtime_error("cannot read " + path);
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

Array array_of(Header& header, const char* base, size_t room) {
    Array array;
    std::vector<int64_t> offsets;
    header.expect('{');
    do {
        const std::string key = header.string();
        header.expect(':');
        if (key == "dtype") array.dtype = header.string();
        else if (key == "shape") array.shape = header.numbers();
        else if (key == "data_offsets") offsets = header.numbers();
        else Header::fail();
    } while (header.next(',', '}'));
    size_t size = width_of(array.dtype);
    for (int64_t side : array.shape)
        if (__builtin_mul_overflow(size, static_cast<size_t>(side), &size)) Header::fail();
    if (offsets.size() != 2 || offsets[0] > offsets[1] || static_cast<size_t>(offsets[1] - offsets[0]) != size)
        Header::fail();
    if (static_cast<size_t>(offsets[1]) > room) throw std::runtime_error("the request is truncated; compile it again");
    array.bytes.assign(base + offsets[0], base + offsets[1]);
    return array;
}

}  // namespace

Request Request::read(const std::string& path) {
    const std::string content = whole_file(path);
    uint64_t length = 0;
    if (content.size() >= 8) std::memcpy(&length, content.data(), 8);  // little-endian, as every machine this runs on
    if (length < 2 || length > kHeaderLimit || length > content.size() - 8)
        throw std::runtime_error(path + " is truncated or no compiled request; framert compile-request makes one");
    const char* base = content.data() + 8 + length;
    Header header(content.data() + 8, base);
    Request request;
    header.expect('{');
    do {
        const std::string name = header.string();
        header.expect(':');
        if (name == "__metadata__") {
            header.expect('{');
            if (header.empty('}')) continue;
            do {
                const std::string key = header.string();
                header.expect(':');
                request.metadata[key] = header.string();
            } while (header.next(',', '}'));
        } else {
            request.arrays[name] = array_of(header, base, content.size() - 8 - length);
        }
    } while (header.next(',', '}'));
    if (request.metadata["format"] != "framert-request" || request.metadata["version"] != "1")
        throw std::runtime_error(path + " is no compiled request of version 1, which this program reads");
    return request;
}

void Request::check_bundle(const std::string& manifest_path) const {
    const std::string manifest = whole_file(manifest_path);
    std::istringstream files(text("files"));
    for (std::string digest; files >> digest;)
        if (manifest.find(digest) == std::string::npos)
            throw std::runtime_error(manifest_path + " is of another bundle than this request was compiled for");
}

}  // namespace framert
