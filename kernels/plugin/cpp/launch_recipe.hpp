// What to launch and how, as an ONNX node or an engine tells it. Plain C++17: neither TensorRT nor CUDA.
//
// A field holds one recipe for each target: 8 bytes of length, text, 8 bytes of length, image (cubin or PTX); lengths
// are little-endian. The text, one keyword with its value per line:
//   format 1
//   target sm_89
//   entry NAME                      of the kernel in the image
//   hash DIGITS                     of what the kernel was made from
//   threads N                       of a block
//   shared_memory BYTES             dynamic
//   workspace BYTES                 an expression
//   grid X ; Y ; Z                  expressions
//   input TYPE RANK                 once per input, in order
//   output TYPE SIZE ; SIZE ..      once per output, in order; sizes are expressions
//   require LEFT = RIGHT            two expressions that must be equal
//   argument input N | output N | workspace | i32 EXPRESSION, each optionally followed by "divisible" (by 16)
// Expressions: + - * / % and brackets over whole numbers and sizes of inputs: d3_0 is axis 0 of input 3.
#pragma once

#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace framert {

using Sizes = std::vector<std::int64_t>;

struct Tensor {
    std::string type;                // fp16, bf16, fp32, i32, i8
    int rank = 0;
    std::vector<std::string> sizes;  // of outputs: one expression per axis
};

struct Argument {
    enum class Kind { kInput, kOutput, kWorkspace, kNumber } kind;
    int index = 0;           // of the input or output
    std::string expression;  // of the number
    bool divisible = false;
};

struct Recipe {
    std::string target, entry, hash, workspace = "0", image;
    std::int64_t threads = 0, shared_memory = 0;
    std::vector<std::string> grid;
    std::vector<Tensor> inputs, outputs;
    std::vector<std::pair<std::string, std::string>> required;
    std::vector<Argument> arguments;
};

inline std::string trimmed(std::string_view text) {
    auto const first = text.find_first_not_of(" \t"), last = text.find_last_not_of(" \t");
    return first == std::string_view::npos ? "" : std::string(text.substr(first, last - first + 1));
}

inline std::vector<std::string> parts(std::string_view text, char separator) {
    std::vector<std::string> found;
    for (std::size_t begin = 0; begin <= text.size();) {
        auto const end = std::min(text.find(separator, begin), text.size());
        found.push_back(trimmed(text.substr(begin, end - begin)));
        begin = end + 1;
    }
    return found;
}

// Evaluates expressions over any value: numbers at run time, TensorRT's own expressions when shapes are inferred.
// Operations: number(int64), size(input, axis), apply(char, value, value).
template <class Value, class Operations>
class Evaluator {
public:
    Evaluator(std::string_view text, Operations& operations) : text_(text), operations_(operations) {}

    Value run() {
        auto const value = sum(0);
        skip();
        if (place_ != text_.size()) fail();
        return value;
    }

private:
    static constexpr int kDeepest = 64;

    Value sum(int depth) {
        auto value = product(depth);
        for (char sign = next(); sign == '+' || sign == '-'; sign = next()) {
            ++place_;
            value = operations_.apply(sign, value, product(depth));
        }
        return value;
    }

    Value product(int depth) {
        auto value = factor(depth);
        for (char sign = next(); sign == '*' || sign == '/' || sign == '%'; sign = next()) {
            ++place_;
            value = operations_.apply(sign, value, factor(depth));
        }
        return value;
    }

    Value factor(int depth) {
        char const first = next();
        if (depth > kDeepest) fail();
        if (first == '(') {
            ++place_;
            auto const value = sum(depth + 1);
            if (next() != ')') fail();
            ++place_;
            return value;
        }
        if (first == 'd') {
            ++place_;
            auto const input = digits();
            if (next() != '_') fail();
            ++place_;
            return operations_.size(static_cast<int>(input), static_cast<int>(digits()));
        }
        return operations_.number(digits());
    }

    std::int64_t digits() {
        auto const begin = place_;
        std::int64_t value = 0;
        while (place_ < text_.size() && text_[place_] >= '0' && text_[place_] <= '9') {
            value = 10 * value + (text_[place_++] - '0');
            if (value > std::numeric_limits<std::int32_t>::max()) fail();
        }
        if (place_ == begin) fail();
        return value;
    }

    void skip() {
        while (place_ < text_.size() && text_[place_] == ' ') ++place_;
    }
    char next() {
        skip();
        return place_ < text_.size() ? text_[place_] : '\0';
    }
    [[noreturn]] void fail() const {
        throw std::invalid_argument("the expression '" + std::string(text_) + "' is not understood at character " +
                                    std::to_string(place_ + 1));
    }

    std::string_view text_;
    Operations& operations_;
    std::size_t place_ = 0;
};

struct Numbers {
    std::vector<Sizes> const& inputs;

    std::int64_t number(std::int64_t value) const { return value; }
    std::int64_t size(int input, int axis) const {
        if (input >= static_cast<int>(inputs.size()) || axis >= static_cast<int>(inputs[input].size()))
            throw std::invalid_argument("there is no size d" + std::to_string(input) + "_" + std::to_string(axis));
        return inputs[input][axis];
    }
    std::int64_t apply(char sign, std::int64_t a, std::int64_t b) const {
        if ((sign == '/' || sign == '%') && b == 0) throw std::invalid_argument("a division by zero");
        return sign == '+' ? a + b : sign == '-' ? a - b : sign == '*' ? a * b : sign == '/' ? a / b : a % b;
    }
};

inline std::int64_t evaluate(std::string_view expression, std::vector<Sizes> const& inputs) {
    Numbers numbers{inputs};
    return Evaluator<std::int64_t, Numbers>(expression, numbers).run();
}

namespace detail {

inline Argument argument(std::string text) {
    Argument made{};
    std::string const suffix = " divisible";
    if (text.size() > suffix.size() && text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0) {
        made.divisible = true;
        text = trimmed(text.substr(0, text.size() - suffix.size()));
    }
    std::istringstream words(text);
    std::string kind;
    words >> kind;
    if (kind == "workspace") {
        made.kind = Argument::Kind::kWorkspace;
    } else if (kind == "i32") {
        made.kind = Argument::Kind::kNumber;
        std::getline(words, made.expression);
    } else if ((kind == "input" || kind == "output") && words >> made.index && made.index >= 0) {
        made.kind = kind == "input" ? Argument::Kind::kInput : Argument::Kind::kOutput;
    } else {
        throw std::invalid_argument("a kernel argument '" + text + "' is not understood");
    }
    return made;
}

inline void line(Recipe& recipe, std::string const& keyword, std::string const& value) {
    std::istringstream words(value);
    if (keyword == "format") {
        if (value != "1") throw std::invalid_argument("format " + value + " is newer than this plugin; build it again");
    } else if (keyword == "target") {
        recipe.target = value;
    } else if (keyword == "entry") {
        recipe.entry = value;
    } else if (keyword == "hash") {
        recipe.hash = value;
    } else if (keyword == "threads") {
        recipe.threads = evaluate(value, {});
    } else if (keyword == "shared_memory") {
        recipe.shared_memory = evaluate(value, {});
    } else if (keyword == "workspace") {
        recipe.workspace = value;
    } else if (keyword == "grid") {
        recipe.grid = parts(value, ';');
    } else if (keyword == "input") {
        Tensor tensor;
        words >> tensor.type >> tensor.rank;
        recipe.inputs.push_back(tensor);
    } else if (keyword == "output") {
        Tensor tensor;
        words >> tensor.type;
        std::string rest;
        std::getline(words, rest);
        tensor.sizes = parts(rest, ';');
        tensor.rank = static_cast<int>(tensor.sizes.size());
        recipe.outputs.push_back(tensor);
    } else if (keyword == "require") {
        auto const sides = parts(value, '=');
        if (sides.size() != 2) throw std::invalid_argument("'require " + value + "' needs one =");
        recipe.required.emplace_back(sides[0], sides[1]);
    } else if (keyword == "argument") {
        recipe.arguments.push_back(argument(value));
    } else {
        throw std::invalid_argument("the keyword '" + keyword + "' is not known; the plugin is too old");
    }
}

}  // namespace detail

inline Recipe parse_text(std::string_view text) {
    Recipe recipe;
    for (auto const& one : parts(text, '\n')) {
        if (one.empty()) continue;
        auto const space = std::min(one.find(' '), one.size());
        detail::line(recipe, one.substr(0, space), trimmed(std::string_view(one).substr(space)));
    }
    if (recipe.entry.empty() || recipe.target.empty() || recipe.grid.size() != 3 || recipe.threads <= 0 ||
        recipe.outputs.empty())
        throw std::invalid_argument("a recipe lacks target, entry, threads, a grid of three or outputs");
    for (auto const& argument : recipe.arguments) {
        bool const input = argument.kind == Argument::Kind::kInput, output = argument.kind == Argument::Kind::kOutput;
        auto const count = static_cast<int>(input ? recipe.inputs.size() : recipe.outputs.size());
        if ((input || output) && argument.index >= count)
            throw std::invalid_argument("a recipe names more inputs or outputs than it has");
    }
    return recipe;
}

// Returns the recipes of a field. Throws std::invalid_argument if it is not whole, or holds what is not understood.
inline std::vector<Recipe> parse(std::string_view field) {
    std::size_t place = 0;
    auto const take = [&] {
        std::uint64_t length = 0;
        if (field.size() - place < 8) throw std::invalid_argument("the kernels are not whole; build again");
        for (int byte = 7; byte >= 0; --byte)
            length = length << 8 | static_cast<unsigned char>(field[place + static_cast<std::size_t>(byte)]);
        place += 8;
        if (field.size() - place < length) throw std::invalid_argument("the kernels are not whole; build again");
        auto const part = field.substr(place, length);
        place += length;
        return part;
    };
    std::vector<Recipe> found;
    while (place < field.size()) {
        found.push_back(parse_text(take()));
        found.back().image = std::string(take());
    }
    if (found.empty()) throw std::invalid_argument("there are no kernels");
    return found;
}

// Throws std::invalid_argument if inputs of these sizes are not what the kernel was compiled for.
inline void check(Recipe const& recipe, std::vector<Sizes> const& inputs) {
    if (inputs.size() != recipe.inputs.size())
        throw std::invalid_argument(recipe.entry + " takes " + std::to_string(recipe.inputs.size()) +
                                    " inputs; given are " + std::to_string(inputs.size()));
    for (std::size_t place = 0; place < inputs.size(); ++place)
        if (static_cast<int>(inputs[place].size()) != recipe.inputs[place].rank)
            throw std::invalid_argument(recipe.entry + ": input " + std::to_string(place) + " has " +
                                        std::to_string(inputs[place].size()) + " axes, " +
                                        std::to_string(recipe.inputs[place].rank) + " expected");
    for (auto const& [left, right] : recipe.required)
        if (evaluate(left, inputs) != evaluate(right, inputs))
            throw std::invalid_argument(recipe.entry + " was compiled for " + left + " = " + right + "; given is " +
                                        std::to_string(evaluate(left, inputs)));
}

// Returns how many blocks to launch along each axis.
inline Sizes blocks(Recipe const& recipe, std::vector<Sizes> const& inputs) {
    Sizes grid;
    for (auto const& expression : recipe.grid) grid.push_back(evaluate(expression, inputs));
    return grid;
}

// Returns the kernel's arguments, each in 8 bytes of which a number uses the first 4.
inline std::vector<std::uint64_t> arguments(Recipe const& recipe, std::vector<Sizes> const& inputs,
                                            void const* const* input, void* const* output, void* workspace) {
    constexpr std::uint64_t kAlignment = 16;
    std::vector<std::uint64_t> values;
    for (auto const& argument : recipe.arguments) {
        std::uint64_t value = 0;
        if (argument.kind == Argument::Kind::kInput) {
            value = reinterpret_cast<std::uint64_t>(input[argument.index]);
        } else if (argument.kind == Argument::Kind::kOutput) {
            value = reinterpret_cast<std::uint64_t>(output[argument.index]);
        } else if (argument.kind == Argument::Kind::kWorkspace) {
            value = reinterpret_cast<std::uint64_t>(workspace);
        } else {
            auto const number = evaluate(argument.expression, inputs);
            if (number < 0 || number > std::numeric_limits<std::int32_t>::max())
                throw std::invalid_argument(recipe.entry + ": " + argument.expression + " is " +
                                            std::to_string(number) + ", which 32 bits do not hold");
            value = static_cast<std::uint64_t>(number);
        }
        if (argument.divisible && value % kAlignment)
            throw std::invalid_argument(recipe.entry + ": argument " + std::to_string(values.size()) + " is " +
                                        std::to_string(value) + ", which 16 does not divide");
        values.push_back(value);
    }
    return values;
}

}  // namespace framert
