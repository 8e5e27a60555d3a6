// Multi-scale deformable attention on a CPU: raw pointers in, raw pointers out, fp32 inside.
//
// Knows nothing of ONNX Runtime and nothing of threads. A call is cut into tasks, one per block of
// queries; tasks write disjoint parts of the output and may run in any order.
//
// Per query and head the work has two halves. First all points at once, one per vector lane: pixel
// coordinates, the four corners' element offsets and their shares (bilinear share x attention
// weight). A corner outside the image gets share 0 and a harmless offset, so nothing branches. Then
// corner by corner: D values are loaded where they lie side by side ([S, M, D]), times one share,
// into accumulators of their own per corner (one chain of additions would wait for itself). The
// first half runs one query and head ahead, so that the loads of the second never wait for it.
//
// What bounds it is the traffic between the caches, not arithmetic: cpu/README.md has the account. So
// where the queries are the pixels themselves (an encoder), a block is a square of pixels, whose
// samples share a neighbourhood that fits the second-level cache; a strip of a row does not.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace visionllm::cpu {

// Sizes and pointers of one call. Letters as in spec.py.
struct MsDeformAttn {
    const void* value;         // [N, S, M, D]
    const float* locations;    // [N, Q, M, L, P, 2], (x, y)
    const void* weights;       // [N, Q, M, L, P]
    void* output;              // [N, Q, M, D]
    int64_t batch, pixels, heads, depth, levels, queries, points;
    // What a point needs to know of its level, [padded_points] each: one entry per point l * P + p.
    const float* width;
    const float* height;
    const int32_t* first;       // element offset of the level's first pixel; 0 for an empty level
    const int32_t* pixel_step;  // elements from a pixel to its right neighbour, likewise
    const int32_t* row_step;    // elements from a pixel to the one below, likewise
};

// Points are handled in whole vectors; tables are padded to the widest one.
constexpr int64_t kMsDeformAttnPadding = 16;

// The queries of one task: `rows` runs of `columns` consecutive ones, `stride` apart.
struct QueryBlock {
    int64_t first, columns, rows, stride;
};

// Sides of a block of pixels, and the length of a block of queries that are no pixels: enough work
// that a task's start-up vanishes, little enough to keep all threads busy to the end.
constexpr int64_t kMsDeformAttnTile = 16;
constexpr int64_t kMsDeformAttnRun = 32;

// Computes one block of queries of one image; the caller runs all pairs.
typedef void (*MsDeformAttnTask)(
    const MsDeformAttn& call, int64_t image, const QueryBlock& block);

}  // namespace visionllm::cpu

#ifdef VISIONLLM_LANES
namespace visionllm::cpu {
namespace {

// Corners of up to this many points are held at a time; more take several passes.
constexpr int64_t kMsDeformAttnPass = 64;
static_assert(kMsDeformAttnPass % VISIONLLM_LANES == 0, "whole vectors");

struct Corners {
    // Per vector of points: four corners, one vector each.
    alignas(64) int32_t offset[4 * kMsDeformAttnPass];
    alignas(64) float share[4 * kMsDeformAttnPass];
};

// The corners of VISIONLLM_LANES points; `at` is the first one's place in the tables.
VISIONLLM_INLINE void find_corners(const MsDeformAttn& call, int64_t at,
    Lanes<VISIONLLM_LANES>::F x, Lanes<VISIONLLM_LANES>::F y, Lanes<VISIONLLM_LANES>::F weight,
    int32_t* offset, float* share) {
    constexpr int N = VISIONLLM_LANES;
    typedef Lanes<N>::F F;
    typedef Lanes<N>::I I;
    const F zero = {}, one = broadcast<F>(1.0f);
    const F width = load_as<F>(call.width + at), height = load_as<F>(call.height + at);
    x = x * width - 0.5f;
    y = y * height - 0.5f;
    // One pixel outside is as good as far outside; written so that NaN lands there too.
    x = choose<F>(x > -one, x, -one);
    y = choose<F>(y > -one, y, -one);
    x = choose<F>(x < width, x, width);
    y = choose<F>(y < height, y, height);
    // Floor: truncate, and one less where that went up. A comparison is -1 where it holds.
    const F x_cut = __builtin_convertvector(__builtin_convertvector(x, I), F);
    const F y_cut = __builtin_convertvector(__builtin_convertvector(y, I), F);
    const F left = choose<F>(x_cut > x, x_cut - one, x_cut);
    const F top = choose<F>(y_cut > y, y_cut - one, y_cut);
    const F right = left + one, bottom = top + one;
    F right_share = x - left, bottom_share = y - top;
    F left_share = one - right_share, top_share = one - bottom_share;
    const F last_x = width - one, last_y = height - one;
    left_share = choose<F>((left >= zero) & (left <= last_x), left_share, zero);
    right_share = choose<F>(right <= last_x, right_share, zero);
    top_share = choose<F>((top >= zero) & (top <= last_y), top_share, zero) * weight;
    bottom_share = choose<F>(bottom <= last_y, bottom_share, zero) * weight;
    const F left_in = choose<F>(left > zero, choose<F>(left < last_x, left, last_x), zero);
    const F right_in = choose<F>(right < last_x, right, last_x);
    const F top_in = choose<F>(top > zero, choose<F>(top < last_y, top, last_y), zero);
    const F bottom_in = choose<F>(bottom < last_y, bottom, last_y);
    const I pixel_step = load_as<I>(call.pixel_step + at), row_step = load_as<I>(call.row_step + at);
    const I first = load_as<I>(call.first + at);
    const I left_at = __builtin_convertvector(left_in, I) * pixel_step;
    const I right_at = __builtin_convertvector(right_in, I) * pixel_step;
    const I top_at = __builtin_convertvector(top_in, I) * row_step + first;
    const I bottom_at = __builtin_convertvector(bottom_in, I) * row_step + first;
    store_as(offset, top_at + left_at);
    store_as(offset + N, top_at + right_at);
    store_as(offset + 2 * N, bottom_at + left_at);
    store_as(offset + 3 * N, bottom_at + right_at);
    store_as(share, top_share * left_share);
    store_as(share + N, top_share * right_share);
    store_as(share + 2 * N, bottom_share * left_share);
    store_as(share + 3 * N, bottom_share * right_share);
}

// The corners of points `from` .. `from + count - 1` of one query and head.
template <class T>
VISIONLLM_INLINE void find_pass(const MsDeformAttn& call, const float* locations,
    const typename T::Storage* weights, int64_t from, int64_t count, Corners& corners) {
    constexpr int N = VISIONLLM_LANES;
    typedef Lanes<N>::F F;
    for (int64_t i = 0; i < count; i += N) {
        const float* location = locations + 2 * (from + i);
        const typename T::Storage* weight = weights + from + i;
        alignas(64) float location_tail[2 * N];
        alignas(64) typename T::Storage weight_tail[N];
        if (count - i < N) {
            for (int64_t j = 0; j < N; ++j) {
                const bool there = j < count - i;
                location_tail[2 * j] = there ? location[2 * j] : 0.0f;
                location_tail[2 * j + 1] = there ? location[2 * j + 1] : 0.0f;
                weight_tail[j] = there ? weight[j] : typename T::Storage{};
            }
            location = location_tail;
            weight = weight_tail;
        }
        F x, y;
        split_pairs<N>(location, x, y);
        find_corners(call, from + i, x, y, T::template load<N>(weight), corners.offset + 4 * i,
            corners.share + 4 * i);
    }
}

// Adds the points of a pass to sums[chain][block]; corner c goes to chain c % Chains.
template <class T, int N, int Blocks, int Chains>
VISIONLLM_INLINE void add_points(const typename T::Storage* value, const Corners& corners,
    int64_t count, typename Lanes<N>::F (&sums)[Chains][Blocks]) {
    constexpr int W = VISIONLLM_LANES;
    for (int64_t group = 0; group < count; group += W) {
        const int32_t* offset = corners.offset + 4 * group;
        const float* share = corners.share + 4 * group;
        const int64_t lanes = count - group < W ? count - group : W;
        for (int64_t lane = 0; lane < lanes; ++lane) {
            for (int corner = 0; corner < 4; ++corner) {
                const typename T::Storage* pixel = value + offset[corner * W + lane];
                const float factor = share[corner * W + lane];
                for (int block = 0; block < Blocks; ++block) {
                    sums[corner % Chains][block] += factor * T::template load<N>(pixel + block * N);
                }
            }
        }
    }
}

// One query and head of a call: where its inputs and its output stand.
template <class T>
struct Row {
    const typename T::Storage* value;
    const float* locations;
    const typename T::Storage* weights;
    typename T::Storage* output;
};

// Channels from .. from + N * Blocks - 1 of a row. With up to kMsDeformAttnPass points `corners`
// holds them already; with more they are found here, pass by pass.
template <class T, int N, int Blocks, int Chains>
VISIONLLM_INLINE void sum_channels(
    const MsDeformAttn& call, const Row<T>& row, int64_t from, Corners& corners) {
    typedef typename Lanes<N>::F F;
    F sums[Chains][Blocks] = {};
    const int64_t points = call.levels * call.points;
    for (int64_t pass = 0; pass < points; pass += kMsDeformAttnPass) {
        const int64_t left = points - pass;
        const int64_t count = left < kMsDeformAttnPass ? left : kMsDeformAttnPass;
        if (points > kMsDeformAttnPass) {
            find_pass<T>(call, row.locations, row.weights, pass, count, corners);
        }
        add_points<T, N, Blocks, Chains>(row.value + from, corners, count, sums);
    }
    for (int block = 0; block < Blocks; ++block) {
        F sum = sums[0][block];
        for (int chain = 1; chain < Chains; ++chain) sum += sums[chain][block];
        T::template store<N>(row.output + from + block * N, sum);
    }
}

template <class T>
VISIONLLM_INLINE void sum_row(const MsDeformAttn& call, const Row<T>& row, Corners& corners) {
    constexpr int N = VISIONLLM_LANES;
    // Four chains per channel hide the addition's latency; 16 registers do not hold 4 x 4 of them.
    constexpr int kWide = N == 16 ? 4 : 2;
    int64_t at = 0;
    for (; call.depth - at >= 4 * N; at += 4 * N) sum_channels<T, N, 4, kWide>(call, row, at, corners);
    for (; call.depth - at >= 2 * N; at += 2 * N) sum_channels<T, N, 2, 4>(call, row, at, corners);
    for (; call.depth - at >= N; at += N) sum_channels<T, N, 1, 4>(call, row, at, corners);
    for (; call.depth - at >= 4; at += 4) sum_channels<T, 4, 1, 4>(call, row, at, corners);
    for (; at < call.depth; ++at) sum_channels<T, 1, 1, 4>(call, row, at, corners);
}

template <class T>
Row<T> row_at(const MsDeformAttn& call, int64_t image, int64_t query, int64_t head) {
    typedef typename T::Storage S;
    const int64_t row = (image * call.queries + query) * call.heads + head;
    const int64_t points = call.levels * call.points;
    return {static_cast<const S*>(call.value) +
                (image * call.pixels * call.heads + head) * call.depth,
        call.locations + row * points * 2, static_cast<const S*>(call.weights) + row * points,
        static_cast<S*>(call.output) + row * call.depth};
}

template <class T>
void ms_deform_attn_task(const MsDeformAttn& call, int64_t image, const QueryBlock& block) {
    const int64_t points = call.levels * call.points;
    const bool one_pass = points <= kMsDeformAttnPass;
    // Two, because the corners of the next row are found while those of this one are in use.
    Corners corners[2];
    Row<T> waiting{};
    int turn = 0;
    // Heads innermost: locations, weights and output are then read and written as they lie.
    for (int64_t y = 0; y < block.rows; ++y) {
        for (int64_t x = 0; x < block.columns; ++x) {
            for (int64_t head = 0; head < call.heads; ++head) {
                const Row<T> row = row_at<T>(call, image, block.first + y * block.stride + x, head);
                if (one_pass) find_pass<T>(call, row.locations, row.weights, 0, points, corners[turn]);
                turn ^= 1;
                if (waiting.output != nullptr) sum_row<T>(call, waiting, corners[turn]);
                waiting = row;
            }
        }
    }
    if (waiting.output != nullptr) sum_row<T>(call, waiting, corners[turn ^ 1]);
}

}  // namespace
}  // namespace visionllm::cpu
#endif
