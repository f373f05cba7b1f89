#include "replay.hpp"

#include <algorithm>
#include <cmath>

namespace framert {
namespace {

using Arrays = std::map<std::string, Array>;

// Patches of latents (channels, h, w) <-> rows of tokens, a token being ordered (row, column, channel).
struct Patches {
    int64_t channels, patch;

    int64_t width() const { return channels * patch * patch; }
    // pixel: values of a pixel in a token, of which the channels are the first; 0: there are no others.
    template <typename Move>
    void walk(int64_t rows, int64_t columns, Move move, int64_t pixel = 0) const {
        const int64_t stride = pixel == 0 ? channels : pixel;
        const int64_t w = columns * patch;
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t column = 0; column < columns; ++column)
                for (int64_t y = 0; y < patch; ++y)
                    for (int64_t x = 0; x < patch; ++x)
                        for (int64_t c = 0; c < channels; ++c)
                            move(((row * columns + column) * patch * patch + y * patch + x) * stride + c,
                                 (c * rows * patch + row * patch + y) * w + column * patch + x);
    }
};

Array slice(const Array& array, int64_t index) {  // array[index]
    Array part{array.dtype, {array.shape.begin() + 1, array.shape.end()}, {}};
    const size_t size = array.bytes.size() / static_cast<size_t>(array.shape[0]);
    const auto begin = array.bytes.begin() + static_cast<ptrdiff_t>(size) * index;
    part.bytes.assign(begin, begin + static_cast<ptrdiff_t>(size));
    return part;
}

Array rows_of(const Array& array, const Array& chosen) {  // array[chosen]
    Array made = Array::make<float>(array.dtype, {chosen.shape[0], array.shape[1]});
    const auto width = static_cast<size_t>(array.shape[1]);
    for (int64_t row = 0; row < chosen.shape[0]; ++row) {
        const int32_t source = chosen.values<int32_t>()[row];
        if (source < 0 || source >= array.shape[0]) throw std::runtime_error("the request points beyond its own slots");
        std::memcpy(made.values<float>() + row * width, array.values<float>() + source * width, width * sizeof(float));
    }
    return made;
}

// The text encoder's input ``feature`` of a prompt, with the features of the pictures that it refers to.
void refer(const Request& request, const Open& open, std::map<std::string, Array>& features) {
    const Array& references = request.at("references");
    if (references.shape[0] == 0) return;
    const auto graph = open("image_encoder");
    for (int64_t reference = 0; reference < references.shape[0]; ++reference) {
        const int32_t* row = references.values<int32_t>() + 3 * reference;
        const std::string name = "prompt." + std::to_string(row[0]) + ".feature";
        graph->set("pixels", request.at("reference." + std::to_string(row[2]) + ".pixels"));
        graph->run();
        const Array made = graph->get("feature");
        Array& feature = features.emplace(name, request.at(name)).first->second;
        if (row[1] < 0 || row[1] >= feature.shape.at(0) || made.count() != static_cast<size_t>(feature.shape.at(1)))
            throw std::runtime_error("a reference does not fit its prompt; compile the request again");
        std::memcpy(feature.values<float>() + row[1] * feature.shape[1], made.bytes.data(), made.bytes.size());
    }
}

std::vector<Arrays> encode_prompts(const Request& request, const Open& open) {
    std::vector<Arrays> encoded;
    Arrays features;
    refer(request, open, features);
    const auto graph = open("text_encoder");
    const auto inputs = graph->inputs();
    for (std::string stem = "prompt.0."; request.has(stem + inputs.at(0));
         stem = "prompt." + std::to_string(encoded.size()) + ".") {
        for (const std::string& name : inputs)
            graph->set(name, features.count(stem + name) != 0 ? features.at(stem + name) : request.at(stem + name));
        graph->run();
        encoded.emplace_back();
        for (const std::string& name : graph->outputs()) encoded.back()[name] = graph->get(name);
    }
    return encoded;
}

// Write an output of the conditioner behind ``begin`` on the arena's axis; the arena is made when it is first needed.
void keep(Array& arena, const Array& sizes, const Array& part, int32_t begin) {
    const auto axis = static_cast<size_t>(sizes.values<int32_t>()[0]);
    const int64_t room = sizes.values<int32_t>()[1];
    if (axis >= part.shape.size() || begin < 0 || begin + part.shape[axis] > room)
        throw std::runtime_error("the request's arenas are too small; compile it again");
    if (arena.shape.empty()) {
        std::vector<int64_t> shape = part.shape;
        shape[axis] = room;
        arena = Array::make<float>(part.dtype, shape);
    }
    size_t inner = sizeof(float), outer = 1;
    for (size_t side = 0; side < part.shape.size(); ++side)
        (side < axis ? outer : inner) *= side == axis ? 1 : static_cast<size_t>(part.shape[side]);
    const size_t length = inner * static_cast<size_t>(part.shape[axis]);
    for (size_t block = 0; block < outer; ++block)
        std::memcpy(arena.bytes.data() + (block * static_cast<size_t>(room) + static_cast<size_t>(begin)) * inner,
                    part.bytes.data() + block * length, length);
}

Arrays condition(const Request& request, const Open& open, const std::vector<Arrays>& encoded) {
    Arrays arenas;
    const auto graph = open("conditioner");
    for (int call = 0; request.has("conditioner." + std::to_string(call) + ".prompt"); ++call) {
        const std::string stem = "conditioner." + std::to_string(call) + ".";
        const Arrays& text = encoded.at(static_cast<size_t>(*request.at(stem + "prompt").values<int32_t>()));
        for (const std::string& name : graph->inputs())
            graph->set(name, request.has(stem + "in." + name) ? request.at(stem + "in." + name) : text.at(name));
        graph->run();
        for (const std::string& name : graph->outputs())
            if (request.has(stem + "to." + name))
                keep(arenas[name], request.at("arena." + name), graph->get(name),
                     *request.at(stem + "to." + name).values<int32_t>());
    }
    return arenas;
}

// The noise and what is shown beside it, by their names, with the latents of given pictures in their places.
Arrays encode_pictures(const Request& request, const Open& open, const Patches& patches) {
    Arrays filled{{"phase.0.latents", request.at("phase.0.latents")}};
    const Array& places = request.at("places");
    if (places.shape[0] == 0) return filled;
    const auto scale = static_cast<float>(std::stod(request.text("scaling_factor")));
    const auto shift = static_cast<float>(std::stod(request.text("shift")));
    const auto graph = open("vae_encoder");
    for (int64_t place = 0; place < places.shape[0]; ++place) {
        const int32_t* row = places.values<int32_t>() + 4 * place;
        const std::string name = row[2] < 0 ? "phase.0.latents" : "phase." + std::to_string(row[2]) + ".conditions";
        Array& target = filled.emplace(name, request.at(name)).first->second;
        graph->set("pixels", request.at("picture." + std::to_string(row[0]) + ".pixels"));
        graph->run();
        const Array mean = graph->get("mean");
        const int64_t rows = mean.shape.at(2) / patches.patch, columns = mean.shape.at(3) / patches.patch;
        const int64_t width = row[3] * patches.patch * patches.patch;
        if (mean.shape[1] != patches.channels || row[3] < patches.channels || target.shape.at(1) != width ||
            row[1] < 0 || row[1] + rows * columns > target.shape[0])
            throw std::runtime_error("a picture does not fit its frame; compile the request again");
        float* tokens = target.values<float>() + row[1] * width;
        patches.walk(rows, columns, [&](int64_t token, int64_t pixel) {
            tokens[token] = (mean.values<float>()[pixel] - shift) * scale;
        }, row[3]);
    }
    return filled;
}

// Latents after each phase.
std::vector<Array> denoise(const Request& request, const Open& open, const Arrays& arenas, const Arrays& filled) {
    std::vector<Array> finished;
    Array latents = filled.at("phase.0.latents");
    Array history = Array::make<float>("F32", latents.shape);
    const auto graph = open("denoiser");
    for (const auto& [name, arena] : arenas) graph->set(name, arena);
    for (std::string stem = "phase.0."; request.has(stem + "row");
         stem = "phase." + std::to_string(finished.size()) + ".") {
        if (request.has(stem + "carry")) {
            latents = rows_of(latents, request.at(stem + "carry"));
            history = rows_of(history, request.at(stem + "carry"));
        }
        for (const std::string& name : graph->inputs())
            if (name != "latents" && name != "row" && name != "update" && request.has(stem + name))
                graph->set(name, filled.count(stem + name) != 0 ? filled.at(stem + name) : request.at(stem + name));
        graph->set("latents", latents);
        graph->set("history", history);
        const Array& row = request.at(stem + "row");
        for (int64_t call = 0; call < row.shape[0]; ++call) {
            if (call > 0) {
                graph->carry("next_latents", "latents");
                graph->carry("next_history", "history");
            }
            graph->set("row", slice(row, call));
            graph->set("update", rows_of(slice(request.at(stem + "update"), call), request.at(stem + "update_group")));
            graph->run();
        }
        latents = graph->get("next_latents");
        history = graph->get("next_history");
        finished.push_back(latents);
    }
    return finished;
}

Array decode(Graph& graph, const Request& request, const Array& latents) {
    const auto scale = static_cast<float>(std::stod(request.text("scaling_factor")));
    const auto shift = static_cast<float>(std::stod(request.text("shift")));
    if (std::max(latents.shape[1], latents.shape[2]) > request.number("tile"))
        throw std::runtime_error("pictures this large are decoded in tiles, which this program does not do");
    Array scaled = Array::make<float>("F32", {1, latents.shape[0], latents.shape[1], latents.shape[2]});
    for (size_t i = 0; i < latents.count(); ++i)
        scaled.values<float>()[i] = latents.values<float>()[i] / scale + shift;
    graph.set("latents", scaled);
    graph.run();
    const Array planes = graph.get("pixels");  // (1, 3, height, width) in -1..1
    const int64_t area = planes.shape.at(2) * planes.shape.at(3);
    Array pixels = Array::make<float>("F32", {planes.shape[2], planes.shape[3], 3});
    for (int64_t place = 0; place < area; ++place)
        for (int64_t color = 0; color < 3; ++color) {
            const float value = planes.values<float>()[color * area + place] * 0.5F + 0.5F;
            pixels.values<float>()[place * 3 + color] = std::min(std::max(value, 0.0F), 1.0F);
        }
    return pixels;
}

}  // namespace

std::vector<Frame> replay(const Request& request, const Open& open) {
    const Patches patches{request.number("latent_channels"), request.number("patch")};
    const Arrays arenas = condition(request, open, encode_prompts(request, open));
    const std::vector<Array> finished = denoise(request, open, arenas, encode_pictures(request, open, patches));
    const auto decoder = open("vae_decoder");
    const Array& outputs = request.at("outputs");
    std::vector<Frame> frames;
    for (int64_t output = 0; output < outputs.shape[0]; ++output) {
        const int32_t* row = outputs.values<int32_t>() + 7 * output;
        const Array& tokens = finished.at(static_cast<size_t>(row[3]));
        const int64_t begin = row[4], rows = row[5], columns = row[6];
        if (begin < 0 || begin + rows * columns > tokens.shape[0])
            throw std::runtime_error("the request points beyond its own slots; compile it again");
        Frame frame{row[0], row[1], {}, {}};
        frame.latents = Array::make<float>("F32", {patches.channels, rows * patches.patch, columns * patches.patch});
        const float* values = tokens.values<float>() + begin * patches.width();
        float* made = frame.latents.values<float>();
        patches.walk(rows, columns, [&](int64_t token, int64_t pixel) { made[pixel] = values[token]; });
        if (!std::all_of(made, made + frame.latents.count(), [](float value) { return std::isfinite(value); }))
            throw std::runtime_error("the model produced NaN or infinity; try another seed or precision");
        if (row[2] != 0) frame.pixels = decode(*decoder, request, frame.latents);
        frames.push_back(std::move(frame));
    }
    return frames;
}

}  // namespace framert
