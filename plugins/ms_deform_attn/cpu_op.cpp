// MultiScaleDeformableAttention for the CPU library: checks the inputs, then runs the kernel's tasks.

#include <algorithm>
#include <vector>

#include "../cpu/operator.h"

namespace visionllm::cpu {
namespace {

// Per level and point: what the kernel needs to know of the level, padded with empty levels.
struct PointTables {
    std::vector<float> width, height;
    std::vector<int32_t> first, pixel_step, row_step;

    explicit PointTables(int64_t points) {
        const int64_t padded =
            (points + kMsDeformAttnPadding - 1) / kMsDeformAttnPadding * kMsDeformAttnPadding;
        const size_t size = static_cast<size_t>(padded);
        for (auto* table : {&width, &height}) table->resize(size);
        for (auto* table : {&first, &pixel_step, &row_step}) table->resize(size);
    }
};

// Fills the tables; the levels come from the graph as data, so each is checked against the pixels.
ort::Status* fill_tables(const Context& context, const Tensor& shapes, const Tensor& starts,
    const MsDeformAttn& call, PointTables* out) {
    const int64_t stride = call.heads * call.depth;
    // Zero or more; the division keeps the product from overflowing.
    if (stride > 0 && call.pixels > INT32_MAX / stride) {
        return context.invalid("input 'value' expected fewer than 2^31 elements an image, got %lld "
            "pixels of %lld", static_cast<long long>(call.pixels), static_cast<long long>(stride));
    }
    for (int64_t level = 0; level < call.levels; ++level) {
        const int64_t height = static_cast<const int32_t*>(shapes.data)[2 * level];
        const int64_t width = static_cast<const int32_t*>(shapes.data)[2 * level + 1];
        const int64_t start = static_cast<const int32_t*>(starts.data)[level];
        if (height < 0 || width < 0 || start < 0 || start + height * width > call.pixels) {
            return context.invalid(
                "level %lld: %lld x %lld pixels from row %lld do not fit into the %lld rows of "
                "'value'", static_cast<long long>(level), static_cast<long long>(height),
                static_cast<long long>(width), static_cast<long long>(start),
                static_cast<long long>(call.pixels));
        }
        const bool empty = height * width == 0;
        for (int64_t point = 0; point < call.points; ++point) {
            const size_t at = static_cast<size_t>(level * call.points + point);
            out->width[at] = empty ? 0.0f : static_cast<float>(width);
            out->height[at] = empty ? 0.0f : static_cast<float>(height);
            out->first[at] = empty ? 0 : static_cast<int32_t>(start * stride);
            out->pixel_step[at] = empty ? 0 : static_cast<int32_t>(stride);
            out->row_step[at] = empty ? 0 : static_cast<int32_t>(width * stride);
        }
    }
    return nullptr;
}

// Cuts the queries into blocks: squares of pixels, level by level, if the queries are the pixels
// (as many, with the levels one after the other), else runs of consecutive queries. Every second
// row of squares runs backwards, so that one square's neighbourhood is still there for the next.
std::vector<QueryBlock> cut_into_blocks(
    const MsDeformAttn& call, const Tensor& shapes, const Tensor& starts) {
    std::vector<QueryBlock> blocks;
    int64_t covered = 0;
    for (int64_t level = 0; level < call.levels && call.queries == call.pixels; ++level) {
        const int64_t height = static_cast<const int32_t*>(shapes.data)[2 * level];
        const int64_t width = static_cast<const int32_t*>(shapes.data)[2 * level + 1];
        if (static_cast<const int32_t*>(starts.data)[level] != covered) break;
        for (int64_t y = 0; y < height; y += kMsDeformAttnTile) {
            const size_t row_begins = blocks.size();
            for (int64_t x = 0; x < width; x += kMsDeformAttnTile) {
                blocks.push_back({covered + y * width + x, std::min(kMsDeformAttnTile, width - x),
                    std::min(kMsDeformAttnTile, height - y), width});
            }
            if (y / kMsDeformAttnTile % 2 == 1) {
                std::reverse(blocks.begin() + static_cast<ptrdiff_t>(row_begins), blocks.end());
            }
        }
        covered += height * width;
    }
    if (covered == call.queries) return blocks;
    blocks.clear();
    for (int64_t first = 0; first < call.queries; first += kMsDeformAttnRun) {
        blocks.push_back({first, std::min(kMsDeformAttnRun, call.queries - first), 1, 0});
    }
    return blocks;
}

ort::Status* compute(Context& context) {
    Tensor value, shapes, starts, locations, weights;
    VISIONLLM_TRY(context.input(0, "value", 4, &value));
    VISIONLLM_TRY(context.input(1, "spatial_shapes", 2, &shapes));
    VISIONLLM_TRY(context.input(2, "level_start_index", 1, &starts));
    VISIONLLM_TRY(context.input(3, "sampling_locations", 6, &locations));
    VISIONLLM_TRY(context.input(4, "attention_weights", 5, &weights));
    MsDeformAttn call{};
    call.batch = value.shape[0];
    call.pixels = value.shape[1];
    call.heads = value.shape[2];
    call.depth = value.shape[3];
    call.queries = locations.shape[1];
    call.levels = locations.shape[3];
    call.points = locations.shape[4];
    const int64_t expected[6] = {call.batch, call.queries, call.heads, call.levels, call.points, 2};
    for (size_t axis = 0; axis < 6; ++axis) {
        if (locations.shape[axis] != expected[axis]) {
            return context.invalid("input 'sampling_locations': axis %zu expected %lld, got %lld",
                axis, static_cast<long long>(expected[axis]),
                static_cast<long long>(locations.shape[axis]));
        }
        if (axis < 5 && weights.shape[axis] != expected[axis]) {
            return context.invalid("input 'attention_weights': axis %zu expected %lld, got %lld",
                axis, static_cast<long long>(expected[axis]),
                static_cast<long long>(weights.shape[axis]));
        }
    }
    if (shapes.shape[0] != call.levels || shapes.shape[1] != 2 || starts.shape[0] != call.levels) {
        return context.invalid("'spatial_shapes' and 'level_start_index' expected [%lld, 2] and "
            "[%lld], got [%lld, %lld] and [%lld]", static_cast<long long>(call.levels),
            static_cast<long long>(call.levels), static_cast<long long>(shapes.shape[0]),
            static_cast<long long>(shapes.shape[1]), static_cast<long long>(starts.shape[0]));
    }
    const int64_t output_shape[4] = {call.batch, call.queries, call.heads, call.depth};
    VISIONLLM_TRY(context.output(0, output_shape, 4, &call.output));

    PointTables tables(call.levels * call.points);
    VISIONLLM_TRY(fill_tables(context, shapes, starts, call, &tables));
    // No pixel may be read where none is; without levels the kernel writes zeros.
    if (call.pixels == 0) call.levels = 0;
    call.value = value.data;
    call.locations = static_cast<const float*>(locations.data);
    call.weights = weights.data;
    call.width = tables.width.data();
    call.height = tables.height.data();
    call.first = tables.first.data();
    call.pixel_step = tables.pixel_step.data();
    call.row_step = tables.row_step.data();

    const std::vector<QueryBlock> blocks = cut_into_blocks(call, shapes, starts);
    const int64_t count = static_cast<int64_t>(blocks.size());
    const MsDeformAttnTask task = context.kernels.ms_deform_attn[element_index(value.element)];
    return context.parallel(call.batch * count, [&](int64_t i) noexcept {
        task(call, i / count, blocks[static_cast<size_t>(i % count)]);
    });
}

}  // namespace

const Operator kMsDeformAttn = {
    "MultiScaleDeformableAttention", 5, 1, 3,
    {{ort::kFloat32, ort::kInt32, ort::kInt32, ort::kFloat32, ort::kFloat32, ort::kFloat32},
        {ort::kFloat16, ort::kInt32, ort::kInt32, ort::kFloat32, ort::kFloat16, ort::kFloat16},
        {ort::kBFloat16, ort::kInt32, ort::kInt32, ort::kFloat32, ort::kBFloat16, ort::kBFloat16}},
    compute};

}  // namespace visionllm::cpu
