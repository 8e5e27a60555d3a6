// Pooling of a feature map over mask pixels on a CPU: the exact fold, raw pointers, fp32 inside.
//
// Bilinear sampling is linear in the map and its shares are a product of a row and a column share,
// so the mean over all foreground pixels is one weight per cell. Three steps: mask rows are added
// into the grid rows they lie between (one long vector operation per mask row), the columns of
// those sums into cells, and the cells' weights multiply the map. Nothing is gathered per pixel.
//
// Knows nothing of ONNX Runtime and nothing of threads.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace visionllm::cpu {

// Where the mask pixels of one axis stand on the grid: pixel i lies between the cells low[i] and
// low[i] + 1 and gives them low_share[i] and high_share[i]; a cell outside the grid gets nothing.
struct PromptPoolAxis {
    int64_t pixels, cells;
    const int64_t* low;
    const float* low_share;
    const float* high_share;
};

// Sizes and pointers of one call. Letters as in spec.py.
struct PromptPool {
    const void* features;         // [N, Gh, Gw, C]
    const float* masks;           // [R, H, W]
    const int32_t* region_image;  // [R]
    void* output;                 // [R, C]
    int64_t images, channels, regions;
    PromptPoolAxis y, x;
    float* weights;               // [R, Gh, Gw], written by the fold, read by the sum
};

// Writes the cells' weights of one region; `rows` is room for Gh * W floats.
typedef void (*PromptPoolFold)(const PromptPool& call, int64_t region, float* rows);
// Writes channels from .. to - 1 of one region.
typedef void (*PromptPoolSum)(const PromptPool& call, int64_t region, int64_t from, int64_t to);

}  // namespace visionllm::cpu

#ifdef VISIONLLM_LANES
namespace visionllm::cpu {
namespace {

// Adds share * (mask != 0) to a grid row and returns nothing; NaN counts as foreground.
VISIONLLM_INLINE void add_mask_row(const float* mask, float share, int64_t width, float* row) {
    constexpr int N = VISIONLLM_LANES;
    typedef Lanes<N>::F F;
    const F shares = broadcast<F>(share), zero = {};
    int64_t x = 0;
    for (; width - x >= N; x += N) {
        const F there = choose<F>(load_as<F>(mask + x) != zero, shares, zero);
        store_as(row + x, load_as<F>(row + x) + there);
    }
    for (; x < width; ++x) row[x] += mask[x] != 0.0f ? share : 0.0f;
}

// The number of foreground pixels; exact, because it counts in integers.
VISIONLLM_INLINE int64_t count_foreground(const float* mask, int64_t pixels) {
    constexpr int N = VISIONLLM_LANES;
    typedef Lanes<N>::F F;
    typedef Lanes<N>::I I;
    // A lane's counter is emptied before 31 bits are full.
    constexpr int64_t kStretch = int64_t{1} << 30;
    int64_t total = 0, i = 0;
    while (pixels - i >= N) {
        const int64_t end = pixels - i < kStretch ? pixels : i + kStretch;
        I counts = {};
        for (; end - i >= N; i += N) counts -= load_as<F>(mask + i) != F{};
        for (int lane = 0; lane < N; ++lane) total += counts[lane];
    }
    for (; i < pixels; ++i) total += mask[i] != 0.0f;
    return total;
}

void prompt_pool_fold(const PromptPool& call, int64_t region, float* rows) {
    const PromptPoolAxis &y_axis = call.y, &x_axis = call.x;
    const int64_t width = x_axis.pixels, grid_width = x_axis.cells;
    const float* mask = call.masks + region * y_axis.pixels * width;
    float* weights = call.weights + region * y_axis.cells * grid_width;
    for (int64_t i = 0; i < y_axis.cells * width; ++i) rows[i] = 0.0f;
    for (int64_t y = 0; y < y_axis.pixels; ++y) {
        const int64_t low = y_axis.low[y];
        if (low >= 0) add_mask_row(mask + y * width, y_axis.low_share[y], width, rows + low * width);
        if (low + 1 < y_axis.cells) {
            add_mask_row(mask + y * width, y_axis.high_share[y], width, rows + (low + 1) * width);
        }
    }
    const int64_t count = count_foreground(mask, y_axis.pixels * width);
    const float scale = count > 0 ? 1.0f / static_cast<float>(count) : 0.0f;
    for (int64_t cell_y = 0; cell_y < y_axis.cells; ++cell_y) {
        const float* row = rows + cell_y * width;
        float* out = weights + cell_y * grid_width;
        for (int64_t i = 0; i < grid_width; ++i) out[i] = 0.0f;
        for (int64_t x = 0; x < width; ++x) {
            const int64_t low = x_axis.low[x];
            if (low >= 0) out[low] += row[x] * x_axis.low_share[x];
            if (low + 1 < grid_width) out[low + 1] += row[x] * x_axis.high_share[x];
        }
        for (int64_t i = 0; i < grid_width; ++i) out[i] *= scale;
    }
}

template <class T, int N, int Blocks>
VISIONLLM_INLINE void sum_cells(const typename T::Storage* features, const float* weights,
    int64_t cells, int64_t channels, typename T::Storage* output) {
    typedef typename Lanes<N>::F F;
    F sums[Blocks] = {};
    for (int64_t cell = 0; cell < cells; ++cell) {
        const float weight = weights[cell];
        if (weight == 0.0f) continue;  // a region covers few cells; features are finite
        const typename T::Storage* row = features + cell * channels;
        for (int block = 0; block < Blocks; ++block) {
            sums[block] += weight * T::template load<N>(row + block * N);
        }
    }
    for (int block = 0; block < Blocks; ++block) {
        T::template store<N>(output + block * N, sums[block]);
    }
}

template <class T>
void prompt_pool_sum(const PromptPool& call, int64_t region, int64_t from, int64_t to) {
    constexpr int N = VISIONLLM_LANES;
    typedef typename T::Storage S;
    const int64_t cells = call.y.cells * call.x.cells, image = call.region_image[region];
    const float* weights = call.weights + region * cells;
    S* output = static_cast<S*>(call.output) + region * call.channels;
    if (image < 0 || image >= call.images) {
        for (int64_t c = from; c < to; ++c) output[c] = S{};
        return;
    }
    const S* features = static_cast<const S*>(call.features) + image * cells * call.channels;
    int64_t c = from;
    for (; to - c >= 4 * N; c += 4 * N) {
        sum_cells<T, N, 4>(features + c, weights, cells, call.channels, output + c);
    }
    for (; to - c >= N; c += N) {
        sum_cells<T, N, 1>(features + c, weights, cells, call.channels, output + c);
    }
    for (; c < to; ++c) {
        sum_cells<T, 1, 1>(features + c, weights, cells, call.channels, output + c);
    }
}

}  // namespace
}  // namespace visionllm::cpu
#endif
