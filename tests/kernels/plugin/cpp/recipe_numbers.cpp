// Prints what launch_recipe.hpp makes of a field, for a test to compare with Python.
//   recipe_numbers launch FIELD ADDRESS SIZES..   SIZES: one word for each input, such as 50x4x24
//   recipe_numbers evaluate SIZES.. < EXPRESSIONS
// ADDRESS is the first input's; the others, the outputs and the workspace follow, 4096 bytes apart.
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>

#include "launch_recipe.hpp"

namespace {

std::vector<framert::Sizes> sizes_of(int count, char** words) {
    std::vector<framert::Sizes> sizes;
    for (int word = 0; word < count; ++word) {
        sizes.emplace_back();
        for (auto const& side : framert::parts(words[word], 'x')) sizes.back().push_back(std::stoll(side));
    }
    return sizes;
}

void launch(char const* file, std::uint64_t address, std::vector<framert::Sizes> const& inputs) {
    std::ifstream stream(file, std::ios::binary);
    std::string const field((std::istreambuf_iterator<char>(stream)), {});
    for (auto const& recipe : framert::parse(field)) {
        framert::check(recipe, inputs);
        std::vector<void const*> input;
        std::vector<void*> output;
        auto const next = [&] { return reinterpret_cast<void*>(address + 4096 * (input.size() + output.size())); };
        for (std::size_t place = 0; place < recipe.inputs.size(); ++place) input.push_back(next());
        for (std::size_t place = 0; place < recipe.outputs.size(); ++place) output.push_back(next());
        std::cout << recipe.target << ' ' << recipe.entry << ' ' << recipe.hash << ' ' << recipe.threads << ' '
                  << recipe.shared_memory << ' ' << framert::evaluate(recipe.workspace, inputs) << ' '
                  << recipe.image.size() << "\ngrid";
        for (auto const block : framert::blocks(recipe, inputs)) std::cout << ' ' << block;
        std::cout << "\noutput";
        for (auto const& side : recipe.outputs[0].sizes) std::cout << ' ' << framert::evaluate(side, inputs);
        std::cout << "\ntypes";
        for (auto const& tensor : recipe.inputs) std::cout << ' ' << tensor.type;
        std::cout << ' ' << recipe.outputs[0].type << "\narguments";
        for (auto const value : framert::arguments(recipe, inputs, input.data(), output.data(), next()))
            std::cout << ' ' << value;
        std::cout << '\n';
    }
}

}  // namespace

int main(int count, char** words) {
    try {
        if (count > 3 && std::string(words[1]) == "launch") {
            launch(words[2], std::strtoull(words[3], nullptr, 10), sizes_of(count - 4, words + 4));
            return 0;
        }
        auto const sizes = sizes_of(count - 2, words + 2);
        for (std::string expression; std::getline(std::cin, expression);)
            std::cout << framert::evaluate(expression, sizes) << '\n';
    } catch (std::invalid_argument const& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
